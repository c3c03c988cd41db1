"""The command line: ``jaxchi2 register REF IMG`` measures a shift, ``jaxchi2 stack FILES`` many frames'.

``jaxchi2 demo`` shows how it looks. Exit status 0 means a good result, 1 a result with a status flag set, or
any frame's (it is printed all the same), 2 an error in the arguments or the files, told in one line. That the
residuals contradict the model's errors is no reason for 1: those that are quoted come from the residuals.
"""

from __future__ import annotations

from collections.abc import Sequence

from .common import Parser, one_line
from .register import add_demo, add_register
from .stack import add_stack

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments after the program's name; those of the process if not given.

    Returns
    -------
    int
        0 for a good result, 1 for one with a status flag set.

    Raises
    ------
    SystemExit
        With code 2 for an error in arguments or files, 0 after ``--help`` and ``--version``.
    """
    parser = _build_parser()
    arguments = parser.parse_args(argv)
    import jax

    precision = bool(jax.config.read("jax_enable_x64"))
    try:
        # A choice of this process; put back for a caller that goes on in it.
        jax.config.update("jax_enable_x64", precision or arguments.float64)
        return arguments.run(arguments)
    except (ImportError, MemoryError, OSError, TypeError, ValueError) as error:
        parser.error(one_line(error))
    finally:
        jax.config.update("jax_enable_x64", precision)


def _build_parser() -> Parser:
    from .. import __version__

    parser = Parser(
        prog="jaxchi2", description="Sub-pixel image registration by chi-squared, with error bars."
    )
    parser.add_argument("--version", action="version", version=f"jaxchi2 {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in (add_register, add_stack, add_demo):
        add(commands)
    return parser
