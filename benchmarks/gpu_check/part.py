"""The process of one part: `python -m benchmarks.gpu_check.part MODULE ...`, started by the harness."""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any


@dataclass
class Outcome:
    """What an item found: `ok` is None where there is nothing to judge, or it was left out."""

    values: dict[str, Any] = field(default_factory=dict)
    ok: bool | None = True
    note: str = ""


@dataclass
class Report:
    """What a part is told, and where it writes a row for every item as soon as it has one."""

    device: str
    out: Path
    rows: Path
    end: float
    """`time.monotonic()` at which the part will be stopped."""
    models: tuple[str, ...] = ()
    well: bool = True

    @property
    def left(self) -> float:
        """Seconds until then."""
        return self.end - time.monotonic()

    @property
    def tiny(self) -> bool:
        """Whether sizes are to be the smallest that make sense."""
        return self.device == "cpu"

    def item(self, name: str, look: Callable[[], Outcome], needs: float = 0.0) -> None:
        """Looks at something; an error is what was found, and the next item follows.

        Args:
            name: of the row.
            look: does it.
            needs: seconds; with fewer left it is not tried.
        """
        began = time.monotonic()
        if self.left < needs:
            outcome = Outcome(ok=None, note=f"left out: {self.left:.0f} s were left")
        else:
            try:
                outcome = look()
            except Exception as error:
                traceback.print_exc()
                lines = str(error).strip().splitlines() or [""]
                outcome = Outcome(ok=False, note=f"{type(error).__name__}: {lines[0][:200]}")
        self.well = self.well and outcome.ok is not False
        row = {
            "item": name,
            "ok": outcome.ok,
            "seconds": round(time.monotonic() - began, 2),
            "note": outcome.note,
            "values": outcome.values,
        }
        with open(self.rows, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def main() -> int:
    """0 if all items are well."""
    parser = argparse.ArgumentParser()
    parser.add_argument("module")
    parser.add_argument("--device", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--models", nargs="+", default=[])
    parser.add_argument("--fail", action="store_true")
    given = parser.parse_args()
    end = time.monotonic() + given.seconds
    report = Report(given.device, given.out, given.rows, end, tuple(given.models))
    if given.fail:
        raise RuntimeError("failed on purpose")
    import_module(given.module).main(report)
    return 0 if report.well else 1


if __name__ == "__main__":
    sys.exit(main())
