"""The resolved configuration of several stages, by each entry's own `--print-config`.

One process for all of them, since most of the time goes into importing what they share. Called with a JSON list of
[module, [argument, …]]; its last line is a JSON list of [exit status, standard output, standard error].
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import sys
import traceback
from collections.abc import Sequence


def print_config(module: str, arguments: Sequence[str]) -> tuple[int, str, str]:
    """What `python -m MODULE --print-config ARGUMENTS` would end with and say."""
    told, complained = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(complained):
        try:
            status = importlib.import_module(module).main(["--print-config", *arguments])
        except SystemExit as end:
            status = end.code
        except Exception:
            traceback.print_exc()
            status = 1
    return int(status or 0), told.getvalue(), complained.getvalue()


def main() -> None:
    """Entry point."""
    gc.disable()  # it would look through all that is imported, again and again
    print(json.dumps([print_config(module, arguments) for module, arguments in json.loads(sys.argv[1])]))
    gc.freeze()


if __name__ == "__main__":
    main()
