"""Gradient-boosted regression trees, small: for tables of a few hundred rows and a few dozen columns.

Friedman (2001), Greedy Function Approximation: A Gradient Boosting Machine, doi:10.1214/aos/1013203451. Each tree
is grown best leaf first on the residuals of the trees before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from froude.core.arrays import Floats


@dataclass
class BoostedTrees:
    """A boosted ensemble for squared error.

    Attributes:
        trees, learning_rate: how many, and how much of each is added.
        leaves, least_rows: size of a tree; rows in its smallest leaf.
        subsample: share of the rows that each tree sees.
    """

    trees: int = 400
    learning_rate: float = 0.05
    leaves: int = 16
    least_rows: int = 5
    subsample: float = 0.8
    seed: int = 0
    _mean: float = 0.0
    _grown: list[list[tuple[int, float, int, int, float]]] = field(default_factory=list)

    def fit(self, x: Floats, y: Floats) -> BoostedTrees:
        """Grow the trees."""
        rng = np.random.default_rng(self.seed)
        self._mean = float(y.mean())
        self._grown = []
        left = y - self._mean
        for _ in range(self.trees):
            rows = rng.permutation(len(y))[: max(2 * self.least_rows, int(self.subsample * len(y)))]
            tree = self._grow(x[rows], left[rows])
            left = left - self.learning_rate * _apply(tree, x)
            self._grown.append(tree)
        return self

    def predict(self, x: Floats) -> Floats:
        """Values at new rows."""
        total = np.sum([_apply(tree, x) for tree in self._grown], axis=0)
        return np.asarray(self._mean + self.learning_rate * total)

    def _grow(self, x: Floats, y: Floats) -> list[tuple[int, float, int, int, float]]:
        # A node: (feature or -1, threshold, child below, child above, value).
        nodes: list[tuple[int, float, int, int, float]] = [(-1, 0.0, 0, 0, float(y.mean()))]
        open_leaves = {0: np.arange(len(y))}
        splits = {0: self._best_split(x, y)}
        while len(open_leaves) < self.leaves:
            leaf = max(splits, key=lambda i: splits[i][0])
            gain, feature, threshold = splits.pop(leaf)
            if gain <= 0:
                break
            rows = open_leaves.pop(leaf)
            below = x[rows, feature] <= threshold
            first = len(nodes)
            nodes[leaf] = (feature, threshold, first, first + 1, 0.0)
            for child, members in ((first, rows[below]), (first + 1, rows[~below])):
                nodes.append((-1, 0.0, 0, 0, float(y[members].mean())))
                open_leaves[child] = members
                splits[child] = self._best_split(x[members], y[members])
        return nodes

    def _best_split(self, x: Floats, y: Floats) -> tuple[float, int, float]:
        """Reduction of squared error, feature and threshold of the best split; gain 0 when there is none."""
        rows = len(y)
        if rows < 2 * self.least_rows:
            return 0.0, 0, 0.0
        order = np.argsort(x, axis=0)
        ordered = np.take_along_axis(x, order, axis=0)
        sums = np.cumsum(y[order], axis=0)[:-1]
        below = np.arange(1, rows, dtype=float)[:, None]
        total = float(y.sum())
        gain = sums**2 / below + (total - sums) ** 2 / (rows - below) - total**2 / rows
        usable = ordered[1:] > ordered[:-1]
        usable[: self.least_rows - 1] = False
        usable[rows - self.least_rows :] = False
        gain = np.where(usable, gain, 0.0)
        at, feature = np.unravel_index(int(gain.argmax()), gain.shape)
        threshold = 0.5 * (ordered[at, feature] + ordered[at + 1, feature])
        return float(gain[at, feature]), int(feature), float(threshold)


def _apply(tree: list[tuple[int, float, int, int, float]], x: Floats) -> Floats:
    result = np.empty(len(x))
    waiting = [(0, np.arange(len(x)))]
    while waiting:
        node, rows = waiting.pop()
        feature, threshold, low, high, value = tree[node]
        if feature < 0:
            result[rows] = value
            continue
        below = x[rows, feature] <= threshold
        waiting += [(low, rows[below]), (high, rows[~below])]
    return result
