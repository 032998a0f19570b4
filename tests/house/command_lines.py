"""The `sostenuto ...` command lines of a text, and whether they can be typed."""

import contextlib
import re
import shlex

FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def command_lines(text: str) -> list[str]:
    """Return the `sostenuto ...` lines of fenced and indented blocks and of inline code, continuations joined."""
    indented = re.findall(r"(?m)(?:^    .*\n)+", text)
    blocks = [block.replace("\\\n", " ") for block in [*FENCE.findall(text), *indented]]
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`(sostenuto [^`\n]+)`", FENCE.sub("", text))
    return [line.removeprefix(".venv/bin/") for line in lines if re.match(r"(\.venv/bin/)?sostenuto\s", line)]


def parse(line: str) -> None:
    """Resolve a command line against the command tree: verbs and options must exist. Nothing is run."""
    import typer

    from sostenuto.cli.main import app
    from sostenuto.recipes import RECIPES

    words = shlex.split(line, comments=True)[1:]
    for stop in ("|", ">", "2>", "&&", ";"):
        words = words[: words.index(stop)] if stop in words else words
    command = typer.main.get_command(app)
    context, name = None, "sostenuto"
    with contextlib.suppress(typer.Exit):  # --help and --version end the parsing
        while True:
            context = command.make_context(name, list(words), parent=context)
            if not hasattr(command, "resolve_command"):
                break
            rest = [*context._protected_args, *context.args]  # the verb stands apart from what follows it
            name, command, words = command.resolve_command(context, rest)
        given = context.params
        for recipe in [given.get("recipe"), *(given.get("models") or "").split(",")]:
            assert not recipe or recipe in RECIPES, f"no recipe is called {recipe!r}"
