"""onnxruntime's quantised LSTM, written out in standard operators (see :mod:`.contrib`)."""

from __future__ import annotations

from onnx import GraphProto, TensorProto, helper

from .contrib import Rewriting, rewrites, trimmed

__all__: list[str] = []


@rewrites("DynamicQuantizeLSTM")
def _dynamic_lstm(r: Rewriting) -> None:
    """Weights of 8 bits, (directions, inputs, 4 · units) and (directions, units, 4 · units), with a scale and a zero point
    for each direction, or for each column of it.

    onnxruntime rounds what meets the weights to 8 bits too: all inputs at once, and the hidden state in every step by a
    scale of its own. So this is one product of whole numbers before, and one in every step of a Scan. Forms that are
    rare (peepholes, lengths of sequences, other activations) become an LSTM of unrounded operands: what comes out differs
    by about a hundredth.
    """
    rare = r.inputs[4] or r.inputs[7] or set(r.attributes) - {"direction", "hidden_size"}
    if rare or r.version < 11:
        _unrounded(r)
        return
    x, w, rec, bias, _, hidden, cell, _, w_scale, w_zero, r_scale, r_zero = r.inputs[:12]
    units = int(r.attribute("hidden_size"))
    backwards = {"forward": [0], "reverse": [1], "bidirectional": [0, 1]}[r.attribute("direction", "forward")]
    rounded = r.several("DynamicQuantizeLinear", 3, x)
    results = []
    for at, backward in enumerate(backwards):
        weight, scale, zero = (_direction(r, name, at) for name in (w, w_scale, w_zero))
        whole = r.op("Cast", r.op("MatMulInteger", rounded[0], weight, rounded[2], zero), to=TensorProto.FLOAT)
        gates = r.op("Mul", whole, r.op("Mul", rounded[1], scale))
        if bias:
            # One for the product with the inputs, one for that with the state.
            both = r.op("Reshape", _direction(r, bias, at), r.constant([2, 4 * units]))
            for part in (0, 1):
                gates = r.op("Add", gates, r.op("Gather", both, r.constant(part), axis=0))
        states = [_direction(r, name, at) if name else _zeros(r, x, units) for name in (hidden, cell)]
        step = _step(r, *(_direction(r, name, at) for name in (rec, r_scale, r_zero)))
        turned = {"scan_input_directions": [1], "scan_output_directions": [1]} if backward else {}
        results.append(r.several("Scan", 3, *states, gates, body=step, num_scan_inputs=1, **turned))
    # Y (steps, directions, samples, units), and the last hidden state and cell (directions, samples, units).
    for output, place, axis in ((0, 2, 1), (1, 0, 0), (2, 1, 0)):
        if r.outputs[output]:
            parts = [r.unsqueeze(result[place], axis) for result in results]
            r.op("Concat", *parts, axis=axis, result=r.outputs[output])


def _direction(r: Rewriting, name: str, at: int) -> str:
    return r.op("Gather", name, r.constant(at), axis=0)


def _zeros(r: Rewriting, x: str, units: int) -> str:
    """(samples, units) zeros, for x (steps, samples, inputs)."""
    samples = r.op("Gather", r.op("Shape", x), r.constant([1]), axis=0)
    return r.op("ConstantOfShape", r.op("Concat", samples, r.constant([units]), axis=0))


def _step(r: Rewriting, weight: str, scale: str, zero: str) -> GraphProto:
    """(hidden, cell, gates so far) -> (hidden, cell, hidden): one step, i, o, f and c being the order of the gates.

    Source: Hochreiter and Schmidhuber 1997, as ONNX writes LSTM down.
    """
    inner = Rewriting(r.node, r.model, r.taken, r.version)
    hidden, cell, gates = (inner.name(name) for name in ("hidden", "cell", "gates"))
    rounded = inner.several("DynamicQuantizeLinear", 3, hidden)
    whole = inner.op("Cast", inner.op("MatMulInteger", rounded[0], weight, rounded[2], zero), to=TensorProto.FLOAT)
    total = inner.op("Add", inner.op("Mul", whole, inner.op("Mul", rounded[1], scale)), gates)
    enter, leave, keep, new = inner.split(total, 4, -1)
    entered = inner.op("Mul", inner.op("Sigmoid", enter), inner.op("Tanh", new))
    next_cell = inner.op("Add", inner.op("Mul", inner.op("Sigmoid", keep), cell), entered)
    next_hidden = inner.op("Mul", inner.op("Sigmoid", leave), inner.op("Tanh", next_cell))
    seen = inner.op("Identity", next_hidden)
    given, made = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
        for names in ((hidden, cell, gates), (next_hidden, next_cell, seen))
    )
    return helper.make_graph(inner.nodes, inner.name("step"), given, made)


def _unrounded(r: Rewriting) -> None:
    """An LSTM whose weights are numbers again."""
    x, w, rec, bias, lengths, hidden, cell, peep, w_scale, w_zero, r_scale, r_zero = r.inputs[:12]
    weights = [_as_numbers(r, *each) for each in ((w, w_scale, w_zero), (rec, r_scale, r_zero))]
    operands = trimmed(x, *weights, bias, lengths, hidden, cell, peep)
    own = dict(r.attributes)
    r.nodes.append(helper.make_node("LSTM", operands, list(r.node.output), name=r.name("LSTM_"), **own))


def _as_numbers(r: Rewriting, weight: str, scale: str, zero: str) -> str:
    """(directions, 4 · units, inputs), as LSTM takes it."""
    number = r.op("Cast", weight, to=TensorProto.FLOAT)
    offset = r.op("Cast", zero, to=TensorProto.FLOAT)
    tensor = r.tensor(scale)
    # One for each direction, or one for each of its columns.
    shape = [-1, 1, 1] if tensor is None or len(tensor.dims) <= 1 else [tensor.dims[0], 1, -1]
    factors = [r.op("Reshape", name, r.constant(shape)) for name in (offset, scale)]
    return r.op("Transpose", r.op("Mul", r.op("Sub", number, factors[0]), factors[1]), perm=[0, 2, 1])
