"""Write a network of the zoo to a file: ``python -m hpdlf.models.zoo gpt layers=24 hidden=1024 heads=16 -o gpt.onnx``.

Without a name it lists the networks, without ``-o`` a network's hyper-parameters. The file goes the way of any other,
its weights left out: ``hpdlf import gpt.onnx --loss softmax_xent --without-weights -o gpt.hpdlf.onnx``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ...errors import HpdlfError, ModelError
from .catalogue import NETWORKS, build, hyper_parameters

__all__ = ["main"]


def _value(text: str) -> object:
    """A number, true, false or a list as JSON has them; anything else is a word."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _pair(text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ModelError(f"{text!r} is no hyper-parameter: write NAME=VALUE, layers=24 say")
    return key, _value(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m hpdlf.models.zoo", description=(__doc__ or "").partition("\n\n")[0]
    )
    parser.add_argument("network", nargs="?", help="one of the networks; without it they are listed")
    parser.add_argument("hyper", nargs="*", metavar="NAME=VALUE", help="hyper-parameters")
    parser.add_argument(
        "-o", "--output", type=Path, help="the ONNX file to write; without it the hyper-parameters are listed"
    )
    given = parser.parse_intermixed_args(arguments)
    try:
        if given.network is None:
            print("\n".join(NETWORKS))
        elif given.output is None:
            print("\n".join(f"{name}={value}" for name, value in hyper_parameters(given.network).items()))
        else:
            content = build(given.network, **dict(map(_pair, given.hyper))).SerializeToString()
            given.output.write_bytes(content)
            print(f"{given.output}: {len(content):,} bytes")
    except HpdlfError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"{given.output} cannot be written: {error.strerror}; choose another place", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
