"""hpdlf as an ONNX backend: prepares and runs any model by the standard's own interface.

>>> import onnx
>>> node = onnx.helper.make_node("Add", ["a", "b"], ["c"])
>>> Backend.run_node(node, [np.float32([1, 2]), np.float32([3, 4])])[0].tolist()
[4.0, 6.0]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TypeProto, helper
from onnx.backend.base import Backend as StandardBackend
from onnx.backend.base import BackendRep, Device, DeviceType

from ..errors import ModelError
from ..models.onnxpp.bodies import body_of
from ..models.onnxpp.contrib import rewrite_contrib
from ..models.onnxpp.external import tensor_values
from ..models.onnxpp.graph import Body
from ..models.onnxpp.load import check, read_model
from ..models.onnxpp.normalise import without_functions
from .failing import in_a_sentence
from .operators import step_context
from .runner import Runner

__all__ = ["Backend", "Prepared"]


class Prepared(BackendRep):
    """A model that is ready to run. It compiles when it first meets inputs of a shape, and keeps what it compiled.

    inputs, outputs   names, in the order of :meth:`run`
    """

    def __init__(self, body: Body, seed: int, device: jax.Device, types: Mapping[str, TypeProto] | None = None) -> None:
        self._runner = Runner(body)
        self._seed, self._device, self._types = seed, device, types or {}
        self.inputs, self.outputs = body.inputs, body.outputs

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The outputs for `inputs`: a list in the order of the model's inputs, or a dictionary by name.

        Tensors are NumPy arrays (strings of dtype object), sequences lists of them, an empty optional None. 64-bit
        types are computed with as they are. Raises ModelError.
        """
        given = self._ordered(inputs)
        for name, value in zip(self.inputs, given, strict=True):
            _check_input(name, value, self._types.get(name, TypeProto()))
        with in_a_sentence(), jax.enable_x64(True), jax.default_device(self._device):
            context = step_context(seed=self._seed, step=0, samples=np.arange(1), training=None)
            return tuple(_plain(value) for value in self._runner(given, {}, context))

    def _ordered(self, inputs: Any) -> list[Any]:
        if isinstance(inputs, dict):
            unknown = sorted(set(inputs) - set(self.inputs))
            missing = [name for name in self.inputs if name not in inputs]
            if unknown or missing:
                raise ModelError(
                    f"the model takes the inputs {', '.join(self.inputs)}; "
                    + "; ".join(
                        f"{name} is {what}"
                        for names, what in ((unknown, "none of them"), (missing, "missing"))
                        for name in names
                    )
                )
            return [_given(inputs[name]) for name in self.inputs]
        if not isinstance(inputs, Sequence) or len(inputs) != len(self.inputs):
            have = len(inputs) if isinstance(inputs, Sequence) else 1
            raise ModelError(
                f"the model takes {len(self.inputs)} inputs ({', '.join(self.inputs)}), {have} were given: "
                "give a list in this order, or a dictionary by name"
            )
        return [_given(value) for value in inputs]


def _given(value: Any) -> Any:
    if value is None or isinstance(value, dict | jax.Array):
        return value
    if isinstance(value, list | tuple):
        return [_given(item) for item in value]
    array = np.asarray(value)
    return array.astype(object) if array.dtype.kind in "US" else array


def _check_input(name: str, value: Any, stated: TypeProto) -> None:
    """A tensor is of the type that the model states, and has the dimensions that it fixes. NumPy's own float64 would
    otherwise go through a model of float32 and make it another one."""
    tensor = stated.tensor_type
    if not tensor.elem_type or not hasattr(value, "dtype"):
        return
    wanted = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    if value.dtype != wanted:
        raise ModelError(
            f"input {name!r} is {wanted}, {value.dtype} was given: convert it, array.astype({str(wanted)!r})"
        )
    if tensor.HasField("shape"):
        # Exporters write 0 and -1 for what they leave open.
        dims = [dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim]
        fits = len(dims) == value.ndim and all(d in (None, n) for d, n in zip(dims, value.shape, strict=True))
        if not fits:
            shape = ", ".join(
                str(size or dim.dim_param or "?") for size, dim in zip(dims, tensor.shape.dim, strict=True)
            )
            raise ModelError(f"input {name!r} has shape [{shape}], {list(value.shape)} was given")


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, dict):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return np.asarray(value)


def _jax_device(name: str) -> jax.Device | None:
    """What JAX calls "CPU" or "CUDA:1"; None where it has no such device."""
    kind = Device(name)
    platform = {DeviceType.CPU: "cpu", DeviceType.CUDA: "gpu"}.get(kind.type)
    try:
        found = [] if platform is None else jax.devices(platform)
    except RuntimeError:
        return None
    return found[kind.device_id] if kind.device_id < len(found) else None


def _available(name: str) -> jax.Device:
    device = _jax_device(name)
    if device is None:
        raise ModelError(f"device {name!r} is not available here; JAX has {', '.join(map(str, jax.devices()))}")
    return device


class Backend(StandardBackend):
    """`onnx.backend.base.Backend` on JAX; what XLA cannot compile runs in NumPy (see :mod:`hpdlf.exec.runner`)."""

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether JAX computes on "CPU" or "CUDA" here; numbered devices ("CUDA:1") count."""
        return _jax_device(device) is not None

    @classmethod
    def prepare(
        cls,
        model: ModelProto | str | Path,
        device: str = "CPU",
        *,
        allow_external: Iterable[str | Path] = (),
        seed: int = 0,
        **kwargs: Any,
    ) -> Prepared:
        """A model, or the path of its file, ready to run on `device`; `seed` is that of its random operators.

        Both are checked as :func:`hpdlf.models.onnxpp.import_model` checks a file. External data lies in the file's
        folder, or in one of `allow_external`; that of a proto was loaded before. Raises ModelError.
        """
        place = _available(device)
        folder, allowed = Path(), [Path(f) for f in allow_external]
        if isinstance(model, ModelProto):
            given, model = model, ModelProto()
            model.CopyFrom(given)
            check(model, "the model", allow_external=allowed)
        else:
            folder = Path(model).parent
            model, _ = read_model(model, allow_external=allowed)
        model = without_functions(model)
        unknown = rewrite_contrib(model)
        if unknown:
            raise ModelError(
                f"operators {', '.join(unknown)} of domain com.microsoft are unknown to the executor: export with standard "
                "operators, or without the optimisations of onnxruntime"
            )
        opsets = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in model.opset_import}
        with in_a_sentence():
            body = body_of(model.graph, opsets, lambda tensor: tensor_values(tensor, folder, allowed))
            return Prepared(body, seed, place, {value.name: value.type for value in model.graph.input})

    @classmethod
    def run_model(
        cls, model: ModelProto | str | Path, inputs: Any, device: str = "CPU", **kwargs: Any
    ) -> tuple[Any, ...]:
        """Prepares a model and runs it once."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Any = None,
        *,
        opset_version: int | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """One operator on its inputs in order, at the newest operator set or `opset_version`."""
        version = opset_version or (onnx.defs.onnx_opset_version() if node.domain in ("", "ai.onnx") else 1)
        names = [name for name in dict.fromkeys(node.input) if name]
        graph = helper.make_graph(
            [node],
            "node",
            [helper.make_empty_tensor_value_info(name) for name in names],
            [helper.make_empty_tensor_value_info(name) for name in node.output if name],
        )
        opsets = {"" if node.domain == "ai.onnx" else node.domain: version}
        given = inputs if isinstance(inputs, dict) else list(inputs)
        body = body_of(graph, {"": onnx.defs.onnx_opset_version(), **opsets})
        return Prepared(body, 0, _available(device)).run(given)


# What the standard's helpers look for in a backend module.
is_compatible = Backend.is_compatible
prepare = Backend.prepare
run = Backend.run_model
supports_device = Backend.supports_device
