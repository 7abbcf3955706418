"""The command `keymoot`. What is heavy is imported by the command that needs it, so that `--help` is quick."""

from __future__ import annotations

import errno
import os
import sys

from policies.errors import CallerError, KeymootError, Refused, Unavailable

EXIT_FAILED = 1
EXIT_CALLER = 2
EXIT_UNAVAILABLE = 3
EXIT_REFUSED = 4
EXIT_INTERRUPTED = 130
# A place that was named, and that this user may not look at, or that cannot be.
BAD_PLACES = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.EROFS)
MAX_NAME_SHOWN = 300
HTTP_CALLER_ERROR = 400
HTTP_TOO_MANY = 429
HTTP_SERVER_ERROR = 500


def main() -> None:
    """Run the command line. A user's mistake is one sentence on standard error and an exit code, no trace.

    Exit codes: 0 done, 1 failed, 2 the caller's mistake, 3 something needed is away, 4 refused.
    """
    from appliance.cli.app import app
    from appliance.cli.completion import VARIABLE, register

    if VARIABLE in os.environ:
        register()
    try:
        _check_text(sys.argv[1:])
        app()
    except KeymootError as error:
        print(f"keymoot: {one_line(error)}{_advice(error)}", file=sys.stderr)
        raise SystemExit(exit_code(error)) from None
    except KeyboardInterrupt:
        print("keymoot: interrupted", file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None
    except BrokenPipeError:
        # The reader of our output has gone (`keymoot keys list | head`): nothing is left to say.
        sys.stderr.close()
        raise SystemExit(EXIT_FAILED) from None
    except OSError as error:
        if error.errno not in BAD_PLACES or error.filename is None:
            raise
        print(f"keymoot: {printable(str(error.filename))[:MAX_NAME_SHOWN]}: {error.strerror}", file=sys.stderr)
        raise SystemExit(EXIT_CALLER) from None


def _check_text(arguments: list[str]) -> None:
    """Raises `CallerError` for what is no text: it could neither be shown nor sent."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(argument).decode(errors="backslashreplace")
            raise CallerError(f"an argument is not UTF-8: {shown}; bytes come from a file, by @FILE") from None


def exit_code(error: KeymootError) -> int:
    """The exit code for an error of each root."""
    if isinstance(error, CallerError):
        return EXIT_CALLER
    if isinstance(error, Unavailable):
        return EXIT_UNAVAILABLE
    if isinstance(error, Refused):
        return EXIT_REFUSED
    return _api_exit_code(error)


def _api_exit_code(error: KeymootError) -> int:
    """The exit code for an error of the API's client, which is imported only where a command used it."""
    if "appliance.api.client" not in sys.modules:
        return EXIT_FAILED
    from appliance.api.client import ApiError, Rejected

    if isinstance(error, Rejected):
        return EXIT_REFUSED
    if isinstance(error, ApiError) and error.status >= HTTP_CALLER_ERROR:
        away = error.status >= HTTP_SERVER_ERROR or error.status == HTTP_TOO_MANY
        return EXIT_UNAVAILABLE if away else EXIT_CALLER
    return EXIT_FAILED


def _advice(error: KeymootError) -> str:
    """What to do, where the error is the library's and cannot know that an operator reads it."""
    if "appliance.api.client" not in sys.modules:
        return ""
    from appliance.api.certificates import COMPARE, CertificateRefused

    return f". Nothing of the key was shown or used. {COMPARE}" if isinstance(error, CertificateRefused) else ""


def one_line(error: KeymootError) -> str:
    """The error's message without line breaks or control characters."""
    return printable(str(error))


def printable(text: str) -> str:
    """`text` on one line, without anything that a terminal would act on: others may have written it."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
