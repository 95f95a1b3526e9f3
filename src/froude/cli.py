"""The command line: commands and nothing else.

Each command lives in `froude.commands` and calls one public function.
"""

from __future__ import annotations

import sys

import typer

from froude.commands import bench, calibrate, check, compare, explain, fit, measure, plan, run, show, simulate

app = typer.Typer(
    name="froude",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    help=(
        "Plan, simulate and run large-scale machine learning: measure small, fit the law, predict large, plan, run, "
        "compare.\n\nStart with `froude run demo`: it measures this machine, predicts, runs for real and compares.\n\n"
        "Then: `froude plan train --model meta-llama/Llama-3.1-70B --cluster h100-sxm:1024 --seq-len 8192 "
        "--global-batch-tokens 8388608`."
    ),
)
for module in (plan, simulate, run, fit, measure, check, compare, explain, calibrate, show, bench):
    module.register(app)


def main() -> None:
    """Entry point: a user's mistake is one sentence on standard error and exit status 2, never a traceback."""
    from froude.core.errors import FroudeError

    try:
        # Outside standalone mode typer returns the code of an `Exit` raised inside a command.
        status = app(standalone_mode=False)
    except FroudeError as error:
        _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        # A usage error of the command line; the class lives in click, or inside typer in releases that carry their own.
        if not hasattr(error, "format_message"):
            raise
        _fail(error.format_message() + _nearest_command(error))
    sys.exit(status if isinstance(status, int) else 0)


def _nearest_command(error: Exception) -> str:
    """The command that may have been meant, as the end of an error sentence."""
    from froude.core.errors import suggestion

    context = getattr(error, "ctx", None)
    commands = getattr(getattr(context, "command", None), "commands", {})
    said = str(getattr(error, "message", ""))
    if not commands or not said.startswith("No such command '"):
        return ""
    return f" {suggestion(said.split(chr(39))[1], commands).capitalize()}"


def _fail(sentence: str) -> None:
    print(f"froude: {sentence}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
