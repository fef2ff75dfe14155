"""Everything that is measured on a GPU, section by section; `gpu.sh` runs them all.

Weights and tokens are drawn at random, so a machine without a network will do. Every part of a section is written to
``results/gpu.json`` as soon as it is measured, with its own command, machine and versions, and is not measured again
unless asked for: what was cut off goes on where it was. A part that the machine lacks something for says so instead,
and is tried again next time.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from gpu_latency import encoder, prefill
from gpu_models import FULL, SEED, SMALL, Bench, Parts, release
from gpu_pruning import large_model, saved_model, scoring
from gpu_writing import decoding
from provenance import RESULTS, update_result

from skillprune.errors import MissingExtra, ProviderUnavailable

SECTIONS: dict[str, Callable[[Bench], Parts]] = {
    "bert-base": lambda bench: encoder("bert-base", bench.scale.base, bench),
    "scoring": lambda bench: scoring("scoring", bench),
    "llama-7b": lambda bench: large_model("llama-7b", bench),
    "bert-large": lambda bench: encoder("bert-large", bench.scale.large, bench),
    "llama-1b": lambda bench: {
        **saved_model("llama-1b", bench),
        **prefill("llama-1b", bench.scale.billion, bench),
        **decoding("llama-1b", bench.scale.billion, bench),
    },
}
HARDWARE = {"cpu": "no GPU", "cuda": "on a GPU"}


def main() -> None:
    """Measures what is asked for and not there yet; the exit status is 1 where a part failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; default: all")
    parser.add_argument("--device", choices=HARDWARE, default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny shapes, to see that everything runs")
    parser.add_argument("--again", action="store_true", help="measure what was measured before, too")
    parser.add_argument("--rounds", type=int, default=60, help="of every timing (default: %(default)s)")
    asked = parser.parse_args()
    if unknown := set(asked.sections) - set(SECTIONS):
        parser.error(f"no section is called {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    if asked.device == "cpu" and not asked.small:
        parser.error("these shapes take a GPU; add --small to see that everything runs")
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("this PyTorch sees no CUDA device; --device cpu --small exercises the same code")
    name, meaning = _results(asked.device, asked.small)
    failed = []
    for section in asked.sections or SECTIONS:
        with TemporaryDirectory() as folder:
            bench = Bench(asked.device, SMALL if asked.small else FULL, asked.rounds, Path(folder))
            parts = SECTIONS[section](bench)
            wanted = {part: measure for part, measure in parts.items() if asked.again or not _is_there(name, part)}
            failed += [part for part, measure in wanted.items() if not _measured(name, part, measure, meaning)]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def _results(device: str, small: bool) -> tuple[str, dict[str, str]]:
    """The name of the results file, and what has to be said of every result in it."""
    if not small:
        return "gpu", {}
    note = f"{HARDWARE[device]}, small shapes: this shows that the code runs, its numbers mean nothing"
    return f"gpu-exercised-on-{device}", {"meaning": note}


def _is_there(name: str, part: str) -> bool:
    path = RESULTS / f"{name}.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return part in found and "skipped" not in found[part]["result"]


def _measured(name: str, part: str, measure: Callable[[], dict[str, Any]], meaning: dict[str, str]) -> bool:
    """Whether a part was measured, or skipped for want of something; what fails leaves the others alone."""
    print(f"{part} ...", flush=True)
    try:
        result = measure()
    except (MissingExtra, ProviderUnavailable) as lacking:
        print(f"{part}: skipped: {lacking}", flush=True)
        result = {"skipped": str(lacking)}
    except Exception:  # whatever it is, the next part may work
        traceback.print_exc()
        return False
    finally:
        release()
    update_result(name, part, seeds=[SEED], result={**meaning, **result})
    return True


if __name__ == "__main__":
    main()
