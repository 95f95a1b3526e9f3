"""Several models on one set of machines."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from froude.cli import main
from froude.core.errors import FroudeError
from froude.serving.iteration import AffineIterationTime
from froude.serving.model_fleet import ModelFleet, SharedModel
from froude.serving.models_api import simulate_models
from froude.serving.outcome import Worker
from froude.serving.policy import SCHEDULERS, Sequence
from froude.serving.router import ROUTERS
from froude.serving.scalers.kubernetes_hpa import KubernetesHpa
from froude.serving.sharing import Multiplexed, SharedFleet, Switching
from froude.serving.simulator import jump_fleet
from froude.serving.stepping import step_fleet

TIMES = [AffineIterationTime(10, 1, 1), AffineIterationTime(25, 2, 0), AffineIterationTime(7, 0, 2)]


def conductor_of(kind, models, machines, router, least, load):
    routers = [ROUTERS.create(router) for _ in range(models)]
    if kind == "multiplexed":
        return Multiplexed(TIMES[:models], machines, routers)
    serving = [list(range(m, machines, models)) for m in range(models)]
    if kind == "static":
        return SharedFleet(serving, machines, routers)
    scalers = [KubernetesHpa(2.0, 2e-10, window_s=3e-10) for _ in range(models)]
    return Switching(serving, machines, routers, scalers, least, [load * (m + 1) for m in range(models)])


def serve(rows, kind, models, machines, scheduler, router, play, least=0, load=50, **how):
    now, trace = 0, []
    for i, (gap, prompt, output, model) in enumerate(rows):
        now += gap
        trace.append(Sequence(i, now, prompt, output, client=prompt % 3))
        trace[-1].model = model % models
    policies = [SCHEDULERS.create(scheduler, max_batched_tokens=32, max_seqs=6) for _ in range(models)]
    workers = [Worker(policies[m], TIMES[m], 30 + 5 * m, 4, model=m) for _ in range(machines) for m in range(models)]
    conductor = conductor_of(kind, models, machines, router, least, load)
    return play(trace, workers, router=conductor.routers[0], conductor=conductor, **how), conductor, trace


@settings(max_examples=400, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.one_of(st.just(0), st.integers(0, 300)), st.integers(1, 60), st.integers(1, 40), st.integers(0, 2)
        ),
        min_size=1,
        max_size=25,
    ),
    kind=st.sampled_from(["static", "multiplexed", "switching"]),
    models=st.integers(1, 3),
    more=st.integers(0, 2),
    scheduler=st.sampled_from(SCHEDULERS.names()),
    router=st.sampled_from(ROUTERS.names()),
    least=st.integers(0, 1),
    load=st.integers(0, 400),
    how=st.sampled_from([{}, {"concurrency": 3}]),
)
def test_jumping_equals_stepping(rows, kind, models, more, scheduler, router, least, load, how):
    shape = (kind, models, models + more, scheduler, router)
    stepped, one, _ = serve(rows, *shape, step_fleet, least, load, **how)
    jumped, two, _ = serve(rows, *shape, jump_fleet, least, load, **how)
    assert jumped == stepped
    assert one.summary() == two.summary() and one.carried == 0
    assert sum(ps >= 0 for ps in jumped.finish_ps) == len(rows) - jumped.rejected


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 300), st.integers(1, 40), st.integers(1, 20), st.integers(0, 2)), min_size=1
    ),
    load=st.integers(0, 400),
)
def test_fewer_machines_than_models(rows, load):
    """Every model gets its turn in the end."""
    found = [
        serve(rows, "switching", 3, 1, "vllm-v1", "round-robin", play, 0, load)[0] for play in (step_fleet, jump_fleet)
    ]
    assert found[0] == found[1]
    assert min(found[0].finish_ps) > 0


def test_turns_by_hand():
    # Both models compute 4 tokens from 0 on: alone 10 + 4 and 25 + 8 ps, by turns twice that.
    rows = [(0, 4, 9, 0), (0, 4, 1, 1), (200, 4, 1, 1)]
    done, _, _ = serve(rows, "multiplexed", 2, 1, "vllm-v1", "round-robin", jump_fleet)
    alone, _, _ = serve([(200, 4, 1, 1)], "multiplexed", 2, 1, "vllm-v1", "round-robin", jump_fleet)
    assert done.first_ps[2] - 200 >= alone.first_ps[0] - 200 == 33


def test_a_request_that_arrives_as_an_iteration_ends_in_the_middle_of_a_jump():
    rows = [(0, 18, 5, 1), (142, 1, 1, 0), (0, 1, 1, 0)]
    shape = ("multiplexed", 2, 2, "fair", "least-outstanding")
    assert serve(rows, *shape, step_fleet)[0] == serve(rows, *shape, jump_fleet)[0]


def test_a_machine_loads_before_it_serves():
    # One machine, first of model 0; a request for model 1 waits for its weights: 2 * 50 ps.
    done, conductor, _ = serve([(0, 4, 1, 1)], "switching", 2, 1, "vllm-v1", "round-robin", jump_fleet)
    assert done.first_ps == [1 + 100 + 33]
    assert conductor.summary() == {"switches": 1, "loading_s": pytest.approx(100e-12)}


BURSTS = "constant:in=2000,out=1"


def fleet(rate, cv):
    models = ("llama-3.1-8b", "qwen2.5-7b")
    return ModelFleet(
        models=tuple(SharedModel(model=m, trace=BURSTS, rate=rate, arrivals=f"gamma:cv={cv}") for m in models)
    )


def e2e(rate, cv, sharing, tp=1):
    found = simulate_models(fleet(rate, cv), "h100-sxm:2", sharing=sharing, tensor_parallel=tp, requests=2000)
    return found.json()["e2e_s"]["mean"]


def test_statistical_multiplexing():
    """AlpaServe: bursts of one model use the devices of the other; the more so, the burstier."""
    gains = [e2e(6.0, cv, "static") / e2e(6.0, cv, "multiplexed") for cv in (1, 4)]
    assert 1.0 < gains[0] < gains[1]
    # Both models sliced over both devices: faster alone, and bursts are shared.
    assert e2e(6.0, 4, "static") > 1.3 * e2e(6.0, 4, "multiplexed", tp=2)


def test_caches_are_divided_by_shares():
    def tokens(*shares):
        names = ("llama-3.1-8b", "meta-llama/Meta-Llama-3-8B")
        fleet = ModelFleet(models=tuple(SharedModel(model=n, share=s) for n, s in zip(names, shares, strict=True)))
        found = simulate_models(fleet, "h100-sxm:1", "constant:in=9,out=2", rate=9, requests=9, sharing="multiplexed")
        return [own["kv_cache_tokens"] for own in found.json()["models"].values()]

    even, uneven = tokens(1, 1), tokens(3, 1)
    assert even[0] == even[1]
    assert uneven[0] == pytest.approx(3 * uneven[1], rel=1e-3) and sum(uneven) == pytest.approx(sum(even), rel=1e-3)


def test_machines_follow_the_load():
    """Nine of ten requests are for one model: it gets more machines than its fixed half."""
    models = ModelFleet(models=(SharedModel(model="llama-3.1-8b", share=9), SharedModel(model="qwen2.5-7b", share=1)))
    how = {"rate": 45.0, "requests": 3000}
    trace = "lognormal:in=1500,out=150,cv=1"
    equal = ModelFleet(models=tuple(m.model_copy(update={"machines": 2}) for m in models.models))
    fixed = simulate_models(equal, "h100-sxm:4", trace, **how).json()
    moved = simulate_models(models, "h100-sxm:4", trace, sharing="switching:target=24,start=2", **how).json()
    assert moved["switches"] >= 1
    assert moved["models"]["llama-3.1-8b"]["e2e_s"]["mean"] < fixed["models"]["llama-3.1-8b"]["e2e_s"]["mean"]
    assert moved["completed"] == fixed["completed"] == 3000


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["froude", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, capsys.readouterr()


def test_the_command(tmp_path, monkeypatch, capsys):
    rows = [f"{i * 0.1},{100 + i},{10},{'a' if i % 3 else 'b'}" for i in range(30)]
    (tmp_path / "trace.csv").write_text("\n".join(["arrival_s,input_tokens,output_tokens,model", *rows]))
    (tmp_path / "fleet.yaml").write_text(
        "models:\n- {model: llama-3.1-8b, name: a, slo: ttft=1}\n- {model: qwen2.5-7b, name: b}\n"
    )
    words = ["simulate", "serve", "--model", str(tmp_path / "fleet.yaml"), "--cluster", "h100-sxm:2"]
    words += ["--trace", str(tmp_path / "trace.csv"), "--sharing", "multiplexed"]
    code, said = run(monkeypatch, capsys, *words, "--json")
    found = json.loads(said.out)
    assert not code
    assert {name: own["requests"] for name, own in found["models"].items()} == {"a": 20, "b": 10}
    assert found["completed"] == 30 and found["models"]["a"]["slo"] == {"ttft": 1.0}
    code, said = run(monkeypatch, capsys, *words, "--out", str(tmp_path / "out"))
    assert not code and "multiplexed" in said.out
    assert len((tmp_path / "out" / "requests.csv").read_text().splitlines()) == 31
    assert "20 of 20" in (tmp_path / "out" / "report.html").read_text()
    code, said = run(monkeypatch, capsys, *words, "--replicas", "2")
    assert code == 2 and "replicas" in said.err


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"sharing": "mixed"}, "sharing"),
        ({"sharing": "static:min=1"}, "sharing"),
        ({"sharing": "switching:min=3"}, "sharing"),
        ({"sharing": "switching:target=0"}, "sharing"),
        ({"disaggregate": "1:1"}, "disaggregate"),
        ({"replicas": 2}, "replicas"),
        ({"models": "llama-3.1-8b,llama-3.1-8b"}, "named twice"),
        ({"models": "llama-3.1-70b,qwen2.5-7b"}, "tp"),
        ({"cluster": "h100-sxm:1"}, "machines"),
        ({"trace": "sessions:turns=2,in=50,out=20,think=3,rate=1"}, "wait for each other"),
        ({"models": "qwen2.5-32b,qwen2.5-14b", "sharing": "multiplexed"}, "multiplexed"),
        ({"trace": None}, "trace"),
    ],
)
def test_what_cannot_be(how, says):
    how = {
        "models": "llama-3.1-8b,qwen2.5-7b",
        "cluster": "h100-sxm:2",
        "trace": "constant:in=10,out=5",
        "requests": 9,
    } | how
    with pytest.raises(FroudeError, match=says):
        simulate_models(how.pop("models"), how.pop("cluster"), how.pop("trace"), **how)
