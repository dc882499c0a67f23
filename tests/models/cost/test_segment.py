import time

import pytest

from hpdlf.errors import ProfileError
from hpdlf.hwprofiles import Device, Quantity
from hpdlf.models.cost import CostModel, compute_workload, fingerprint, fusion, operator_roofline
from hpdlf.models.cost.operator_times import OperatorTimes
from hpdlf.models.cost.segment import operations_in
from hpdlf.models.onnxpp import Dim, Graph, Operator, Tensor


def quantity(value: float, unit: str = "1") -> Quantity:
    return Quantity(value=value, unit=unit, source="test", tier="modelled")


def device(**changes: object) -> Device:
    fields: dict = {
        "name": "toy",
        "kind": "gpu",
        "peak_flops_per_s": {"float32": quantity(1e12), "bfloat16": quantity(8e12)},
        "memory_bytes": quantity(1e10),
        "memory_bandwidth_bytes_per_s": quantity(1e11),
        "launch_overhead_s": quantity(1e-5),
        "communication_overlap": quantity(1.0),
    }
    return Device(**(fields | changes))


def network(prefix: str = "", loss: str | None = None) -> Graph:
    """x [b, 64] @ w [64, 256] -> m; relu; tanh; @ v [256, 8] -> y."""
    shapes = {"x": 64, "m": 256, "r": 256, "t": 256, "y": 8}
    tensors = {
        n: Tensor(name=prefix + n, dtype="float32", shape=(Dim(per_sample=1), Dim(w))) for n, w in shapes.items()
    }
    tensors["w"] = Tensor(name=prefix + "w", dtype="float32", shape=(Dim(64), Dim(256)))
    tensors["v"] = Tensor(name=prefix + "v", dtype="float32", shape=(Dim(256), Dim(8)))

    def operator(name: str, op_type: str, family: str, inputs: str, output: str) -> Operator:
        return Operator(
            name=prefix + name,
            op_type=op_type,
            family=family,
            inputs=tuple(prefix + i for i in inputs),
            outputs=(prefix + output,),
        )

    return Graph(
        name="toy",
        opset=20,
        operators=(
            operator("first", "MatMul", "matmul", "xw", "m"),
            operator("relu", "Relu", "elementwise", "m", "r"),
            operator("tanh", "Tanh", "elementwise", "r", "t"),
            operator("last", "MatMul", "matmul", "tv", "y"),
        ),
        tensors={t.name: t for t in tensors.values()},
        inputs=(prefix + "x",),
        targets=(),
        outputs=(prefix + "y",),
        loss=loss,
        parameters=(prefix + "w", prefix + "v"),
        state={},
        constants=(),
    )


ALL = ("first", "relu", "tanh", "last")
FUSES = ("all", "pairs", "none")


def test_roofline_of_a_matrix_product_in_closed_form() -> None:
    graph = network()
    estimate = operator_roofline(graph.operator["first"], graph, batch=1000, phase="forward", device=device())
    flops, nbytes = 2 * 1000 * 64 * 256, 4 * (1000 * 64 + 64 * 256 + 1000 * 256)
    assert estimate.seconds == pytest.approx(max(flops / 1e12, nbytes / 1e11) + 1e-5)
    assert estimate.bound == "compute"


def test_fusion_spares_the_tensor_between_elementwise_neighbours() -> None:
    nbytes = 4 * 10 * 256
    found = fusion(network(), ALL, batch=10, phase="forward")
    assert found.saved_bytes == {"tanh": nbytes, "relu": nbytes}
    assert found.fused == {"tanh"}


def test_a_segment_border_between_neighbours_saves_nothing() -> None:
    assert fusion(network(), ("first", "relu"), batch=10, phase="forward").saved_bytes == {}


def test_a_residual_is_written_even_where_its_reader_is_fused() -> None:
    training = network(loss="y")  # relu's result is what its derivative needs
    assert set(fusion(training, ALL, batch=10, phase="forward").saved_bytes) == {"tanh"}


def test_components_of_a_segment_in_closed_form() -> None:
    work = compute_workload(network(), [(ALL, "forward")], batch=1000, device=device(kind="cpu"))
    elementwise = 4 * 1000 * 256 * 2 / 1e11  # relu's operand in, tanh's result out
    assert work.components["elementwise"] == pytest.approx(elementwise)
    assert work.components["kernels"] == pytest.approx(3e-5)
    assert work.components["dispatch"] == pytest.approx(1e-5)
    assert work.n_launches == 1


def test_an_accelerators_components_are_the_regressions_seconds_calls_included() -> None:
    work = compute_workload(network(), [(ALL, "forward")], batch=1000, device=device())
    assert set(work.components) == {"matmul", "elementwise", "dispatch"}
    times = OperatorTimes.default().times(work.operations, device())
    of_products = [s for s, o in zip(times.seconds, work.operations, strict=True) if o.family == "matmul"]
    assert work.components["matmul"] == pytest.approx(sum(of_products))
    assert set(work.spreads) == {"matmul", "elementwise"}
    assert work.learned == frozenset()  # nobody measured a device of this vendor


def test_one_segment_costs_less_than_its_operators_alone() -> None:
    model, graph = CostModel.default(), network()
    whole = model.compute(graph, [(ALL, "forward")], batch=64, device=device())
    alone = sum(model.compute(graph, [((n,), "forward")], batch=64, device=device()).seconds for n in ALL)
    assert whole.seconds < alone


def test_the_first_layer_needs_no_gradient_of_its_input() -> None:
    first = compute_workload(network(), [(("first",), "backward")], batch=1000, device=device())
    weight = compute_workload(network(), [(("first",), "backward_weight")], batch=1000, device=device())
    assert first.flops == weight.flops == 2 * 1000 * 64 * 256
    assert (
        "matmul"
        not in compute_workload(network(), [(("first",), "backward_input")], batch=8, device=device()).components
    )


def test_recomputing_is_the_forward_pass_again() -> None:
    forward = fingerprint(network(), [(ALL, "forward")], batch=4)
    assert forward == fingerprint(network(), [(ALL, "recompute")], batch=4)


def test_the_fingerprint_ignores_names_and_nothing_else() -> None:
    parts = [(ALL, "forward")]
    base = fingerprint(network(), parts, batch=4)
    renamed = [(tuple("other/" + n for n in ALL), "forward")]
    assert fingerprint(network("other/"), renamed, batch=4) == base
    others = {
        fingerprint(network(), parts, batch=8),
        fingerprint(network(), [(ALL, "backward")], batch=4),
        fingerprint(network(), [(ALL[:3], "forward")], batch=4),
        fingerprint(network(), parts, batch=4, precision="bfloat16"),
        fingerprint(network(loss="y"), parts, batch=4),
        fingerprint(network(), [*parts, *parts], batch=4),
    }
    assert base not in others
    assert len(others) == 6


def test_more_samples_cost_more_and_a_faster_device_less() -> None:
    model, graph, parts = CostModel.default(), network(), [(ALL, "forward")]
    slow = model.compute(graph, parts, batch=1000, device=device())
    assert model.compute(graph, parts, batch=2000, device=device()).seconds > slow.seconds
    fast = device(peak_flops_per_s={"float32": quantity(4e12)}, memory_bandwidth_bytes_per_s=quantity(4e11))
    assert model.compute(graph, parts, batch=1000, device=fast).seconds < slow.seconds
    assert model.compute(graph, parts, batch=1000, device=device(), precision="bfloat16").seconds < slow.seconds


def test_a_device_without_the_precision_is_refused_with_the_mend() -> None:
    with pytest.raises(ProfileError, match=r"toy.*no peak_flops for float64.*peak_flops\.float64"):
        compute_workload(network(), [(ALL, "forward")], batch=1, device=device(), precision="float64")
    with pytest.raises(ProfileError, match="did you mean 'float32'"):
        compute_workload(network(), [(ALL, "forward")], batch=1, device=device(), precision="float23")


def test_energy_lies_between_idle_and_limit_and_is_unknown_without_them() -> None:
    model, graph, parts = CostModel.default(), network(), [(ALL, "forward")]
    known = device(idle_w=quantity(50.0), limit_w=quantity(300.0))
    estimate = model.compute(graph, parts, batch=4096, device=known)
    assert estimate.joules is not None
    assert estimate.low_j is not None
    assert estimate.high_j is not None
    assert (
        50
        < estimate.low_j / estimate.seconds
        <= estimate.joules / estimate.seconds
        <= estimate.high_j / estimate.seconds
        <= 1.02 * 300  # meters read up to 2 % above a limit
    )
    assert model.compute(graph, parts, batch=4096, device=device()).joules is None


def test_a_thousand_repeated_estimates_are_cheap() -> None:
    model, graph, toy = CostModel.default(), network(), device()
    begin = time.perf_counter()
    for _ in range(1000):
        model.compute(graph, [(ALL, "forward")], batch=16, device=toy)
    assert time.perf_counter() - begin < 1.0


def training_gpt() -> Graph:
    """A small GPT with its loss."""
    from hpdlf.models.zoo import import_network

    graph = import_network("gpt", layers=1, hidden=128, heads=2, seq_len=16, vocab=64, attention="fused").graph
    assert graph.loss
    return graph


def test_frameworks_that_call_kernels_fuse_less_than_a_compiler() -> None:
    graph = training_gpt()
    names = tuple(o.name for o in graph.operators)
    parts = [(names, "forward"), (names, "backward")]

    def traffic(fuses) -> float:
        return compute_workload(graph, parts, batch=8, device=device(), precision="bfloat16", fuses=fuses).traffic_bytes

    def kernels(fuses) -> int:
        return sum(o.own_kernel for o in operations_in(graph, parts, batch=8, precision="bfloat16", fuses=fuses))

    assert max(traffic("all"), traffic("pairs")) < traffic("none")
    assert kernels("all") <= kernels("pairs") < kernels("none")


def test_a_library_adds_the_bias_as_it_writes_the_product() -> None:
    graph = training_gpt()
    up = next(o.name for o in graph.operators if o.name.startswith("layers.0.mlp.up") and o.op_type == "MatMul")
    bias = next(o for o in graph.operators if graph.operator[up].outputs[0] in o.inputs)
    found = fusion(graph, (up, bias.name), batch=8, phase="forward", fuses="none")
    assert found.fused == {bias.name}
    assert found.saved_bytes[bias.name] >= 2 * graph.tensors[bias.outputs[0]].nbytes(8, "float32")


def test_kernels_one_by_one_are_other_work_than_what_was_compiled() -> None:
    keys = {compute_workload(network(), [(ALL, "forward")], batch=4, device=device(), fuses=f).key for f in FUSES}
    assert len(keys) == len(FUSES)


def test_equal_layers_are_looked_at_once() -> None:
    """A hundred layers cost hardly more to price than one."""
    from hpdlf.models.zoo import import_network

    graph = import_network("gpt", layers=96, hidden=256, heads=4, seq_len=32, vocab=64, attention="fused").graph
    parts = [(tuple(o.name for o in graph.operators), phase) for phase in ("forward", "backward")]
    begin = time.process_time()
    workload = compute_workload(graph, parts, batch=2, device=device())
    assert time.process_time() - begin < 2.0
    assert len(set(workload.operations)) < 100 < len(workload.operations)


def test_in_tf32_eager_convolutions_turn_their_operands() -> None:
    from hpdlf.models.zoo import import_network

    graph = import_network("resnet18", image=64).graph
    names = tuple(o.name for o in graph.operators)
    parts = [(names, "forward"), (names, "backward")]
    convolutions = sum(o.family == "conv" for o in operations_in(graph, parts, batch=2, precision="tf32"))
    turned = [o for o in operations_in(graph, parts, batch=2, precision="tf32", fuses="none") if o.op == "cast"]
    assert len(turned) == pytest.approx(convolutions, abs=1)  # the first has no gradient of its data
    assert not any(o.op == "cast" for o in operations_in(graph, parts, batch=2, precision="float32", fuses="none"))


def test_kernels_fused_by_hand_are_for_16_bits() -> None:
    graph = training_gpt()
    parts = [(tuple(o.name for o in graph.operators), "forward")]
    by_hand, none = (operations_in(graph, parts, batch=2, fuses=fuses) for fuses in ("pairs", "none"))
    assert by_hand == none


def test_automatic_mixed_precision_keeps_what_follows_a_norm_in_float32() -> None:
    from hpdlf.models.zoo import import_network

    graph = training_gpt()
    parts = [(tuple(o.name for o in graph.operators), "forward")]
    plain, cast = (operations_in(graph, parts, batch=2, precision="bfloat16", fuses=f) for f in ("none", "autocast"))
    assert {o.item_bytes for o in plain} == {2}
    wide = {o.op for o in cast if o.item_bytes == 4}
    assert {"layernormalization", "softmaxcrossentropyloss"} <= wide
    assert not wide & {"linear", "attention"}
    pictures = import_network("resnet18", image=64).graph
    everything = [(tuple(o.name for o in pictures.operators if o.family != "loss"), "forward")]
    plain, cast = (
        operations_in(pictures, everything, batch=2, precision="bfloat16", fuses=f) for f in ("none", "autocast")
    )
    assert plain == cast  # batch norms keep their 16 bits
