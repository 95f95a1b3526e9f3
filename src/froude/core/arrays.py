"""The one array type of the analytic code: a number, or one number per candidate."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Array: TypeAlias = float | npt.NDArray[Any]
"""A scalar, or an array over candidates; anything of this type broadcasts against anything else of it."""
