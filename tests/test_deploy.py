"""The files that deploy the product, as far as they can be checked without a Docker engine.

`docker-compose.yml` is read strictly, against the schema of the Compose specification; every path and variable in it is
looked up; and each service's very command is run, with the values of the file and nothing else in its environment, on
an installation that holds the dependencies of its image alone. Host names are mapped to 127.0.0.1, ports to free ones.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import check_jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from backend.queue.own_redis import redis_command
from backend.queue.services import Service, free_port
from lasagna.settings import Settings, cache_folder
from tools import setup

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "docker-compose.yml"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SECRETS = {
    "REDIS_PASSWORD": "redis-secret",
    "POSTGRES_PASSWORD": "postgres-secret",
    "BACKEND_PASSWORD": "backend-secret",
    "LABEL_STUDIO_PASSWORD": "studio-secret",
    "LABEL_STUDIO_USER_TOKEN": "0123456789abcdef0123456789abcdef01234567",
}


class StrictLoader(yaml.SafeLoader):
    """YAML in which a key may come once: PyYAML lets the last one win, Compose refuses the file."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = [key.value for key, _ in node.value]  # merge keys (<<) among them
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise yaml.constructor.ConstructorError(None, None, f"keys given twice: {sorted(twice)}", node.start_mark)
        return node


def example() -> dict[str, str]:
    """The variables of .env.example, with secrets filled in."""
    lines = (ROOT / ".env.example").read_text().splitlines()
    given = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return {**given, **SECRETS}


def interpolated(value: Any, variables: dict[str, str]) -> Any:
    """What Compose makes of a value: ${NAME}, ${NAME:-default} and ${NAME:?words} replaced, $$ made $."""
    if isinstance(value, dict):
        return {key: interpolated(one, variables) for key, one in value.items()}
    if isinstance(value, list):
        return [interpolated(one, variables) for one in value]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        if match["name"] is None:
            raise ValueError(f"{value!r}: a $ that is no variable")
        found = variables.get(match["name"], "")
        if not found and match["kind"] == ":?":
            raise ValueError(f"{match['name']}: {match['words']}")
        return found or (match["words"] or "")

    return re.sub(r"\$\$|\$(?:\{(?P<name>\w+)(?:(?P<kind>:[-?])(?P<words>[^}]*))?\})?", fill, value)


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return interpolated(yaml.load(FILE.read_text(), StrictLoader), example())


class TestFile:
    def test_a_key_given_twice_is_noticed(self) -> None:
        for text in ("x: {a: 1, b: 2, a: 3}", "x: &x {a: 1}\ny: {<<: *x, <<: *x}"):
            with pytest.raises(yaml.YAMLError, match="given twice"):
                yaml.load(text, StrictLoader)

    def test_follows_the_compose_specification(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        def check(path: Path) -> int:
            with pytest.raises(SystemExit) as ended:
                check_jsonschema.main(["--builtin-schema", "vendor.compose-spec", str(path)])
            return int(ended.value.code or 0)

        broken = tmp_path / "docker-compose.yml"
        broken.write_text(FILE.read_text().replace("start_period:", "start_time:"))
        assert check(FILE) == 0, capsys.readouterr().out
        assert check(broken) == 1

    def test_services_and_what_holds_for_each(self, compose: dict[str, Any]) -> None:
        services = compose["services"]
        assert list(services) == [
            *("redis", "backend", "worker", "worker-gpu", "training", "training-gpu", "postgres", "label-studio")
        ]
        for name, service in services.items():
            assert service["restart"] == "unless-stopped", name
            assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL"), name
            assert re.search(r":\d+\.\d+", service["image"]) or "build" in service, f"{name} is not pinned"
            for volume in service["volumes"]:
                assert volume.split(":")[0] in compose["volumes"], f"{name}: {volume}"
            for other in service.get("depends_on", {}):
                assert "healthcheck" in services[other]
                assert {*service["networks"]} & {*services[other]["networks"]}, f"{name} cannot reach {other}"
            assert service["cap_drop"] == ["ALL"], name
            assert service["security_opt"] == ["no-new-privileges:true"], name
            assert service["pids_limit"] > 0, name
            assert re.fullmatch(r"\d+g", service["mem_limit"]), name
            assert service.get("read_only") is (None if name == "label-studio" else True), name
        for name in ("worker", "training"):
            cpu, gpu = dict(services[name]), dict(services[f"{name}-gpu"])
            assert cpu.pop("profiles") == ["cpu"]
            assert gpu.pop("profiles") == ["gpu"]
            assert gpu.pop("deploy")["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
            assert cpu == gpu
        inside = {name for name, one in compose["networks"].items() if one and one.get("internal")}
        assert {*services["redis"]["networks"], *services["postgres"]["networks"]} == inside
        assert not {*services["redis"]["networks"]} & {*services["postgres"]["networks"]}
        published = {name: service["ports"] for name, service in services.items() if "ports" in service}
        assert published == {"label-studio": ["127.0.0.1:8080:8080"]}

    def test_label_studio_can_make_a_webhook(self, compose: dict[str, Any]) -> None:
        [alias] = compose["services"]["backend"]["networks"]["default"]["aliases"]
        assert "." in alias
        studio = compose["services"]["label-studio"]["environment"]
        assert (studio["ML_BLOCK_LOCAL_IP"], studio["SSRF_PROTECTION_ENABLED"]) == ("false", "false")
        assert alias in (ROOT / ".env.example").read_text()

    def test_every_variable_of_env_is_used_and_every_secret_is_asked_for(self) -> None:
        raw = yaml.load(FILE.read_text(), StrictLoader)
        known = {*example()}
        assert {*re.findall(r"\$\{(\w+)", FILE.read_text())} | {"COMPOSE_PROFILES"} == known
        for secret in SECRETS:
            with pytest.raises(ValueError, match=f"{secret}: set it in .env"):
                interpolated(raw, {**example(), secret: ""})
            assert f"\n{secret}=\n" in (ROOT / ".env.example").read_text()

    def test_no_secret_is_in_a_command_line(self, compose: dict[str, Any]) -> None:
        for name, service in compose["services"].items():
            words = [*service.get("command", []), *service["healthcheck"]["test"]]
            assert not [word for word in words for secret in SECRETS.values() if secret in word], name

    def test_every_setting_is_one_of_ours(self, compose: dict[str, Any]) -> None:
        known = {"LASAGNA_" + name.upper() for name in Settings.model_fields}
        for name in ("backend", "worker", "training"):
            assert {*compose["services"][name]["environment"]} <= known
            Settings.load(compose["services"][name]["environment"])

    def test_every_setting_of_label_studio_is_read_by_it(
        self, compose: dict[str, Any], installed_label_studio: Settings
    ) -> None:
        [package] = (cache_folder(installed_label_studio) / "label-studio/venv/lib").glob(
            "python*/site-packages/label_studio"
        )
        source = "\n".join(path.read_text() for path in (package / "core").rglob("*.py"))
        source += (package / "server.py").read_text()
        for variable in compose["services"]["label-studio"]["environment"]:
            names = [variable, variable.removeprefix("LABEL_STUDIO_")]  # it reads both
            assert any(f"'{name}'" in source for name in names), variable


class TestImages:
    def test_every_path_exists(self, compose: dict[str, Any]) -> None:
        stages = {}
        for service in compose["services"].values():
            if "build" in service:
                assert (ROOT / service["build"]["context"]).resolve() == ROOT
                text = (ROOT / service["build"]["dockerfile"]).read_text()
                stages[service["build"]["target"]] = text
        assert set(stages) == {"web", "worker"}
        names = re.findall(r"^FROM (\S+) AS (\S+)$", stages["web"], re.M)
        assert {"web", "worker"} <= {name for _, name in names}
        assert all("$" in source or source in {name for _, name in names} for source, _ in names)
        allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
        copied = {
            word for line in re.findall(r"^COPY (?!--from)(.*) \S+$", stages["web"], re.M) for word in line.split()
        }
        assert copied == allowed
        assert all((ROOT / path).exists() for path in copied)
        packages = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
        assert {package.rstrip("*") for package in packages} < copied

    def test_run_as_a_user_without_rights(self) -> None:
        text = (ROOT / "backend" / "Dockerfile").read_text()
        for target in ("worker", "web"):
            stage = text[text.index(f" AS {target}\n") :].split("FROM")[0]
            assert "USER 10001" in stage

    def test_nothing_is_installed_but_files_that_are_named_by_hash(self) -> None:
        text = (ROOT / "backend" / "Dockerfile").read_text()
        installs = re.findall(r"\bpip install\b.*?(?=&&|;|$)", re.sub(r"\\\n", " ", text), re.M)
        named = [re.search(r"--requirement \"?requirements/(\S+?)\.txt", one) for one in installs]
        files = {found[1] for found in named if found}
        assert files == {"build", "web", "worker", "torch-${TORCH_BACKEND}"}
        for one, found in zip(installs, named, strict=True):
            assert "--no-deps" in one, one
            is_hashed = found is not None and "--require-hashes" in one
            assert is_hashed or one.split()[-1] == "/wheels/*.whl", one
        assert re.search(r"pip wheel .*--no-deps --no-build-isolation", text)  # its tools are among the build's files
        for path in (ROOT / "tools" / "requirements").iterdir():
            assert hashed(path), path.name
            assert "://" not in path.read_text()

    def test_those_files_are_what_the_tests_run_with(self) -> None:
        """`make image-requirements` was run after `make update`."""
        lines = (ROOT / "tools" / "constraints.txt").read_text().splitlines()
        pins = dict(line.split("==") for line in lines if "==" in line)
        folder = ROOT / "tools" / "requirements"
        found = {path.stem: hashed(path) for path in folder.iterdir()}
        for name, entries in found.items():
            differ = {k: (v, pins[k]) for k, v in entries.items() if k in pins and v.partition("+")[0] != pins[k]}
            assert not differ, name
        worker = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["train"]]
        assert closure(PROJECT["dependency-groups"]["web"]) <= {*found["web"]}
        for torch in ("torch-cpu", "torch-cuda"):
            assert closure(worker) <= {*found["worker"], *found[torch]}
            assert not {*found["worker"]} & {*found[torch]}

    def test_images_are_pinned_by_digest_where_docker_is(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Only what the registries say is made up: there is no Docker here."""
        digest = f"sha256:{'0123456789abcdef' * 4}"
        program = tmp_path / "bin" / "docker"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\n[ "$3" = inspect ] || exit 1\necho "$4" >> {tmp_path}/asked\necho {digest}\n')
        for name in ("docker-compose.yml", "backend/Dockerfile"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
        monkeypatch.setattr(setup, "ROOT", tmp_path)
        monkeypatch.setenv("PATH", str(program.parent))
        with pytest.raises(setup.SetupError, match="there is no docker here"):
            setup.image_digests()  # it cannot be run yet
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:/bin:/usr/bin")
        for _ in range(2):  # a second time the digests are renewed
            setup.image_digests()
        services = yaml.load((tmp_path / "docker-compose.yml").read_text(), StrictLoader)["services"]
        foreign = [service["image"] for service in services.values() if "build" not in service]
        assert [image.partition("@")[2] for image in foreign] == [digest] * 3
        python = re.findall(r"^ARG PYTHON=(\S+)$", (tmp_path / "backend" / "Dockerfile").read_text(), re.M)
        assert python == [f"3.11.13-slim-bookworm@{digest}"]
        names = {*(image.partition("@")[0] for image in foreign), "python:3.11.13-slim-bookworm"}
        assert {*(tmp_path / "asked").read_text().split()} == names
        program.write_text("#!/bin/sh\necho toomanyrequests >&2\nexit 1\n")
        with pytest.raises(setup.SetupError, match="said no digest: toomanyrequests"):
            setup.image_digests()

    def test_what_the_web_process_needs_is_a_part_of_all(self) -> None:
        web = {Requirement(text) for text in PROJECT["dependency-groups"]["web"]}
        assert web < {Requirement(text) for text in PROJECT["project"]["dependencies"]}


def hashed(path: Path) -> dict[str, str]:
    """The packages of a file of requirements, with their versions; each has a hash."""
    entries = re.sub(r"\\\n", " ", path.read_text()).splitlines()
    found = {}
    for entry in entries:
        if not entry.startswith("#"):
            name, *hashes = entry.split()
            assert hashes, entry
            assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", one) for one in hashes), entry
            found[canonicalize_name(name.partition("==")[0])] = name.partition("==")[2]
    return found


# --- each service's command ------------------------------------------------------------------------------------------


def closure(requirements: Sequence[str]) -> set[str]:
    """The names of the installed packages that these requirements bring, themselves among them."""
    found: set[str] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        one = waiting.pop()
        name = canonicalize_name(one.name)
        if name in found or (one.marker and not any(one.marker.evaluate({"extra": e}) for e in {"", *one.extras})):
            continue
        try:
            more = distribution(name).requires or []
        except PackageNotFoundError:
            continue  # for another platform, or overridden away (tool.uv)
        found.add(name)
        waiting += [Requirement(text) for text in more]
    return found


def install(folder: Path, requirements: Sequence[str]) -> Path:
    """An environment of links to the packages that these requirements bring, and to ours; its folder of programs."""
    venv.create(folder, symlinks=True, with_pip=False)
    [site] = (folder / "lib").glob("python*/site-packages")
    for name in closure(requirements):
        found = distribution(name)
        for top in {path.parts[0] for path in found.files or () if path.parts[0] not in ("..", "__pycache__")}:
            target = Path(str(found.locate_file(top)))
            if not (site / top).exists() and target.exists() and not top.startswith("__editable__"):
                (site / top).symlink_to(target)
    for package in ("lasagna", "training", "backend", "label_config"):
        (site / package).symlink_to(ROOT / package)
    ours = site / "lasagna_assist-0.dist-info"
    ours.mkdir()
    (ours / "METADATA").write_text("Metadata-Version: 2.1\nName: lasagna-assist\nVersion: 0\n")
    groups = PROJECT["project"]["entry-points"].items()
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {where}\n" for name, where in known.items()) for group, known in groups
    ]
    (ours / "entry_points.txt").write_text("".join(lines))
    program = folder / "bin" / "lasagna"
    program.write_text(f"#!{folder / 'bin' / 'python'}\nfrom lasagna.commands.cli import main\nmain()\n")
    program.chmod(0o755)
    return folder / "bin"


class Started:
    """The services of the file, on this machine."""

    def __init__(self, compose: dict[str, Any], folder: Path, stack: ExitStack) -> None:
        self.folder, self._compose, self._stack = folder, compose, stack
        self._ports = {port: free_port() for port in ("6379", "9090", "8080", "5432")}
        project = PROJECT["project"]
        worker = [*project["dependencies"], *project["optional-dependencies"]["train"]]
        self._bins = {
            "web": install(folder / "web", PROJECT["dependency-groups"]["web"]),
            "worker": install(folder / "worker", worker),
            "redis": folder / "redis-bin",
        }
        self._bins["redis"].mkdir()
        (self._bins["redis"] / "valkey-server").symlink_to(redis_command()[0])
        entrypoint = self._bins["redis"] / "docker-entrypoint.sh"  # the image's own drops root, and then does this
        entrypoint.write_text('#!/bin/sh\nexec "$@"\n')
        entrypoint.chmod(0o755)
        if cli := shutil.which("valkey-cli") or shutil.which("redis-cli"):
            (self._bins["redis"] / "valkey-cli").symlink_to(cli)

    def here(self, value: Any) -> str:
        """A value of the file, with this machine's names, ports and folders."""
        text = re.sub(r"\b(redis|label-studio|postgres):(\d+)", r"127.0.0.1:\2", str(value))
        text = re.sub(r"\b(6379|9090|8080|5432)\b", lambda match: str(self._ports[match[0]]), text)
        return text.replace("0.0.0.0", "127.0.0.1").replace("/data", str(self.folder / "data"))

    def environ(self, name: str) -> dict[str, str]:
        service = self._compose["services"][name]
        image = service.get("build", {}).get("target", name)
        path = f"{self._bins[image]}:/usr/bin:/bin"
        given = {key: self.here(value) for key, value in service["environment"].items()}
        return {"PATH": path, "HOME": str(self.folder), **given}

    def start(self, name: str, *more: str) -> Service:
        command = [self.here(word) for word in self._compose["services"][name]["command"]]
        if name == "redis":  # the only one that takes its port and folder from the image
            where = f"--port {self._ports['6379']} --bind 127.0.0.1 --dir {self.folder}"
            command[-1] = command[-1].replace("valkey-server -", f"valkey-server - {where}")
        log = self.folder / f"{name}.log"
        service = Service(name, ["/usr/bin/env", "-i", *_pairs(self.environ(name)), *command], log=log)
        self._stack.callback(service.stop)
        service.wait_until(lambda: self.is_healthy(name), 120)
        return service

    def is_healthy(self, name: str) -> bool:
        """Whether the health check of the file succeeds."""
        kind, *words = [self.here(word) for word in self._compose["services"][name]["healthcheck"]["test"]]
        if name == "redis":
            if not (self._bins["redis"] / "valkey-cli").exists():  # nothing that ships with us has one
                with socket.socket() as probe:
                    return probe.connect_ex(("127.0.0.1", self._ports["6379"])) == 0
            words = [words[0].replace("valkey-cli", f"valkey-cli -p {self._ports['6379']}")]
        command = ["sh", "-c", *words] if kind == "CMD-SHELL" else words
        done = subprocess.run(["/usr/bin/env", "-i", *_pairs(self.environ(name)), *command], capture_output=True)
        return done.returncode == 0

    def run(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Another command in a service's environment, as `docker compose exec` does."""
        command = ["/usr/bin/env", "-i", *_pairs(self.environ(name)), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)


def _pairs(environ: dict[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in environ.items()]


@pytest.fixture(scope="module")
def started(compose: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    with ExitStack() as stack:
        found = Started(compose, tmp_path_factory.mktemp("compose"), stack)
        found.start("redis")
        yield found


@pytest.mark.slow
class TestCommands:
    def test_redis_wants_its_password(self, started: Started) -> None:
        import redis

        port = started.here("6379")
        with pytest.raises(redis.AuthenticationError), redis.Redis.from_url(f"redis://127.0.0.1:{port}") as client:
            client.ping()
        with redis.Redis.from_url(f"redis://:redis-secret@127.0.0.1:{port}") as client:
            assert client.config_get("appendonly") == {"appendonly": "yes"}
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert client.config_get("save") == {"save": ""}
            server = Path("/proc") / str(client.info("server")["process_id"]) / "cmdline"
        assert "valkey-server" in server.read_text()
        assert "redis-secret" not in server.read_text()

    def test_backend(self, started: Started) -> None:
        assert not started.is_healthy("backend")
        started.start("backend")
        modules = started.run("backend", "python", "-c", "import importlib.util as u; print(u.find_spec('torch'))")
        assert modules.stdout.strip() == "None"
        log = (started.folder / "backend.log").read_text()
        assert [secret for secret in SECRETS.values() if secret in log] == []

    def test_commands_in_the_image_without_torch(self, started: Started) -> None:
        assert started.run("backend", "lasagna", "--help").returncode == 0
        assert "Tasks: queued 0" in started.run("backend", "lasagna", "jobs").stdout
        refused = started.run("backend", "lasagna", "ask", "/etc/hostname", "what is here?")
        assert refused.returncode == 2
        assert "needs the package torch, which is not installed here" in refused.stderr

    @pytest.mark.parametrize("name", ["worker", "training"])
    def test_workers(self, started: Started, name: str) -> None:
        assert not started.is_healthy(name)
        service = started.start(name)
        service.stop(60)
        assert service.process.returncode == 0
        assert not started.is_healthy(name)


@pytest.mark.label_studio
def test_label_studio_on_postgresql(
    compose: dict[str, Any],
    installed_label_studio: Settings,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    """Only with --postgres: it takes a minute. PostgreSQL refuses to run as root, so it is started as `nobody` then."""
    if not request.config.getoption("--postgres"):
        pytest.skip("takes a minute: type `pytest tests/test_deploy.py --postgres`")
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("there is no PostgreSQL: type `sudo apt-get install postgresql`")
    given = compose["services"]["postgres"]["environment"]
    as_user = {"user": "nobody"} if os.geteuid() == 0 else {}
    home = Path(os.environ.get("TMPDIR", "/tmp")) / f"lasagna-postgres-{os.getpid()}"
    home.mkdir()
    try:
        if as_user:
            shutil.chown(home, "nobody")
        (home / "password").write_text(given["POSTGRES_PASSWORD"])
        initdb = [programs[-1] / "initdb", "-D", home / "data", "-U", given["POSTGRES_USER"]]
        subprocess.run([*initdb, "--auth=scram-sha-256", f"--pwfile={home / 'password'}"], check=True, **as_user)  # type: ignore[call-overload]
        _label_studio_with(compose, programs[-1], home, as_user, installed_label_studio, tmp_path)
    finally:
        shutil.rmtree(home)


def _label_studio_with(
    compose: dict[str, Any], programs: Path, home: Path, as_user: dict[str, str], settings: Settings, folder: Path
) -> None:
    import requests

    given, port, web = compose["services"]["postgres"], free_port(), free_port()
    as_nobody = ["setpriv", "--reuid=nobody", "--clear-groups"] if as_user else []
    command = [*as_nobody, programs / "postgres", "-D", home / "data", "-p", str(port), "-k", str(home)]
    with ExitStack() as stack:
        server = Service("PostgreSQL", command, log=folder / "postgres.log")
        stack.callback(server.stop)
        health = [*given["healthcheck"]["test"][1:], "--port", str(port), "--host", "127.0.0.1"]

        def is_up() -> bool:
            return subprocess.run([programs / health[0], *health[1:]], capture_output=True, check=False).returncode == 0

        server.wait_until(is_up, 60)
        environ = {"PGPASSWORD": given["environment"]["POSTGRES_PASSWORD"], "PATH": "/usr/bin:/bin"}
        createdb = [programs / "createdb", "--port", str(port), "--host", "127.0.0.1"]
        createdb += ["-U", given["environment"]["POSTGRES_USER"], given["environment"]["POSTGRES_DB"]]
        subprocess.run(createdb, env=environ, check=True)  # the image does so
        studio = compose["services"]["label-studio"]
        values = {name: str(value).replace("5432", str(port)) for name, value in studio["environment"].items()}
        values |= {"POSTGRE_HOST": "127.0.0.1", "LABEL_STUDIO_BASE_DATA_DIR": str(folder), "HOME": str(folder)}
        program = cache_folder(settings) / "label-studio/venv/bin/label-studio"
        start = [program, "start", "--no-browser", "--internal-host", "127.0.0.1", "--port", str(web)]
        values["PATH"] = f"{program.parent}:/usr/bin:/bin"
        running = Service("Label Studio", ["/usr/bin/env", "-i", *_pairs(values), *start], log=folder / "studio.log")
        stack.callback(running.stop)
        check = [word.replace("8080", str(web)) for word in studio["healthcheck"]["test"][1:]]
        check[0] = sys.executable

        def answers() -> bool:
            return subprocess.run(check, capture_output=True, check=False).returncode == 0

        running.wait_until(answers, 600)
        who = requests.get(
            f"http://127.0.0.1:{web}/api/current-user/whoami",
            headers={"Authorization": f"Token {SECRETS['LABEL_STUDIO_USER_TOKEN']}"},
            timeout=60,
        )
        assert who.json()["email"] == "admin@example.org"
