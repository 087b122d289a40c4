"""``python -m benchmarks.reliability run NAME...``, ``... coverage`` and ``... report``."""

from __future__ import annotations

from engines.cli.aborted import exit_aborted, importing

if __name__ == "__main__":
    try:
        with importing():
            from benchmarks.reliability.commands import main

        main()
    except KeyboardInterrupt:  # during the imports, which take seconds: click answers later ones
        exit_aborted()
