"""What `deploy/` says can be: commands parse, settings exist, ends are long enough, nothing runs as root.

Neither the units nor the image are run here.
"""

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from tests.house.command_lines import parse

from sostenuto.cli.serve import resolve

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
TIMERS = sorted((DEPLOY / "systemd").glob("*.timer"))
CONTAINERFILE = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
SETTINGS = DEPLOY / "server.toml"
EXECUTABLE = "/opt/sostenuto/bin/sostenuto"
ENDLESS = [path for path in UNITS if "Type=exec" in path.read_text(encoding="utf-8")]

of_units = pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)


def unit(path: Path) -> dict[str, list[str]]:
    """Return name -> values of a unit, all sections together; no name of ours stands in two of them."""
    found: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith(("#", ";", "[")):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def seconds(text: str) -> int:
    return int(text) * 1 if text.isdigit() else int(text[:-1]) * {"h": 3600, "s": 1}[text[-1]]


def commands(path: Path) -> list[str]:
    """Return the `sostenuto ...` lines of a unit, out of a shell where there is one, with % as systemd leaves it."""
    lines = [line.replace("%%", "%").replace("%i", "main") for line in unit(path)["ExecStart"]]
    inside = [shlex.split(line)[2] if line.startswith("/bin/sh -c ") else line for line in lines]
    return [re.sub(r"\$\([^)]*\)", "now", line.removeprefix("exec ")) for line in inside]


@of_units
def test_every_command_of_a_unit_can_be_typed(path):
    for line in commands(path):
        assert line.startswith(EXECUTABLE + " ")
        parse("sostenuto" + line.removeprefix(EXECUTABLE))


def test_a_wrong_command_of_a_unit_is_seen():
    with pytest.raises(Exception, match=r"(?i)no such"):
        parse("sostenuto store encode STORE --bundel BUNDLE")


def test_the_settings_are_those_of_a_server():
    server, service = resolve(SETTINGS, {"served": None}, {})
    assert server.keys is not None
    assert server.served is not None
    assert not service.encode
    assert (DEPLOY / "systemd" / "sostenuto-encode@.service").is_file()


def test_units_and_settings_mean_the_same_store_and_the_same_bundles():
    _, service = resolve(SETTINGS, {"served": None}, {})
    for path in UNITS:
        for line in commands(path):
            words = shlex.split(line)
            if words[1] == "store":
                assert words[3] == service.store, path.name
    bundles = {word for path in UNITS for line in commands(path) for word in shlex.split(line) if "/bundles/" in word}
    assert bundles == {"/srv/sostenuto/bundles/main"}


def test_a_server_has_the_time_to_end_that_its_settings_take():
    server, _ = resolve(SETTINGS, {"served": None}, {})
    takes = server.drain_s + server.graceful_s + server.limits.request_timeout_s
    (service,) = (path for path in UNITS if path.stem == "sostenuto")
    assert seconds(unit(service)["TimeoutStopSec"][0]) > takes
    assert unit(service)["KillMode"] == ["mixed"]
    stop = re.search(r"--stop-timeout (\d+)", (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8"))
    assert stop
    assert int(stop[1]) > takes


@of_units
def test_units_run_as_a_user_of_their_own_and_write_where_they_must(path):
    said = unit(path)
    assert said["User"] == ["sostenuto"]
    assert said["ProtectSystem"] == ["strict"]
    assert said["NoNewPrivileges"] == ["yes"]
    assert said["CapabilityBoundingSet"] == [""]
    writable = said["ReadWritePaths"][0].split()
    tables = tomllib.loads(SETTINGS.read_text(encoding="utf-8"))
    written = [tables["service"]["store"]]
    if path.stem == "sostenuto":
        written += [tables["log"], tables["served"]["folder"], tables["service"]["control"]]
    if "backup" in path.stem:
        written += ["/var/backups/sostenuto/now"]
    for place in written:
        assert any(Path(place).is_relative_to(folder) for folder in writable), place


@pytest.mark.parametrize("path", ENDLESS, ids=lambda path: path.name)
def test_what_runs_for_ever_is_started_again_and_has_one_thread_for_torch(path):
    assert unit(path)["Restart"] == ["on-failure"]
    assert "OMP_NUM_THREADS=1" in unit(path)["Environment"]


def test_every_timer_has_its_unit():
    assert TIMERS
    assert all(path.with_suffix(".service") in UNITS for path in TIMERS)


@pytest.mark.parametrize("path", [*UNITS, *TIMERS], ids=lambda path: path.name)
def test_systemd_finds_nothing_wrong(path, tmp_path):
    """The executable is put where it can be found; units of other packages are not ours to judge."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    executable = tmp_path / "sostenuto"
    executable.write_text("#!/bin/sh\n")
    executable.chmod(0o755)
    for one in (*UNITS, *TIMERS):
        text = one.read_text(encoding="utf-8").replace(EXECUTABLE, str(executable))
        (tmp_path / one.name).write_text(text)
    name = path.name.replace("@", "@main")
    (tmp_path / name).write_text((tmp_path / path.name).read_text())
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / name)], capture_output=True, text=True, check=False
    )
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "sostenuto" in line]
    assert ours == []


# -- the image ---------------------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """Return (instruction, rest) of the Containerfile, continuations joined."""
    lines = "\n".join(line for line in CONTAINERFILE.splitlines() if not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", "", lines)
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line]


def stages() -> list[list[tuple[str, str]]]:
    found: list[list[tuple[str, str]]] = []
    for instruction, rest in instructions():
        if instruction == "FROM":
            found.append([])
        if found:
            found[-1].append((instruction, rest))
    return found


def last(name: str) -> str:
    """Return what an instruction says in the stage that becomes the image."""
    return [rest for instruction, rest in stages()[-1] if instruction == name][-1]


def environment() -> dict[str, str]:
    return dict(word.split("=", 1) for i, rest in stages()[-1] if i == "ENV" for word in shlex.split(rest))


def test_the_image_runs_a_command_that_can_be_typed():
    parse(shlex.join(json.loads(last("ENTRYPOINT")) + json.loads(last("CMD"))))


def test_the_image_does_not_run_as_root_and_has_two_stages():
    assert len(stages()) == 2
    user = last("USER").split(":")[0]
    assert user.isdigit()
    assert int(user) > 0
    made = [rest for instruction, rest in stages()[-1] if instruction == "RUN"]
    assert any(f"--uid {user}" in rest for rest in made)


def test_variables_of_the_image_are_some_that_the_server_reads():
    import typer

    from sostenuto.cli.serve import app

    read = {parameter.envvar for parameter in typer.main.get_command(app).commands["run"].params if parameter.envvar}
    ours = {name for name in environment() if name.startswith("SOSTENUTO_")}
    assert ours
    assert ours <= read


def test_the_image_writes_into_volumes_only():
    volumes = json.loads(last("VOLUME"))
    for name, place in environment().items():
        if name.startswith("SOSTENUTO_"):
            assert any(Path(place).is_relative_to(volume) for volume in volumes), name
    assert any(Path(json.loads(last("CMD"))[1]).is_relative_to(volume) for volume in volumes)


def test_the_health_check_asks_whether_the_server_is_ready():
    check = last("HEALTHCHECK")
    words = json.loads(check[check.index("CMD ") + 4 :])
    assert words[:2] == ["python", "-c"]
    compile(words[2], "health check", "exec")
    port = json.loads(last("CMD"))[-1]
    assert f"http://127.0.0.1:{port}/readyz" in words[2]
    assert last("EXPOSE") == port


def test_no_key_and_no_whole_folder_gets_into_the_image():
    for instruction, rest in instructions():
        if instruction in {"ARG", "ENV"}:
            assert not re.search(r"(?i)(secret|password|token)|sst_", rest), rest
        if instruction in {"COPY", "ADD"} and "--from=build" not in rest:
            assert instruction == "COPY"
            for source in shlex.split(rest)[:-1]:
                assert source not in {".", "./", "*"}
                assert (ROOT / source).exists(), source
    assert "keys add" not in CONTAINERFILE


def test_the_image_installs_extras_that_there_are_and_a_python_that_will_do():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    arguments = dict(rest.split("=", 1) for instruction, rest in instructions() if instruction == "ARG")
    assert set(arguments["EXTRAS"].split(",")) <= set(project["optional-dependencies"])
    assert f"Programming Language :: Python :: {arguments['PYTHON']}" in project["classifiers"]
    assert "TORCH_INDEX" in arguments
    made = re.search(r"^TORCH \?= torch==(\S+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert made
    assert made[1] == arguments["TORCH"]


def test_the_page_says_that_none_of_it_was_run():
    page = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    assert "None of it was run" in page
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            assert path.name in page or path.with_suffix(".service").name in page, path.name
