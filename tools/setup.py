"""Set-up of this checkout: `python3 tools/setup.py environment|label-studio|browser|update|audit|sbom|...`, which the
Makefile calls.

What always holds: it needs Python 3.11 and nothing else; every part is made once and stamped when complete, so a second
run takes a moment and an interrupted one is made again; nothing is installed outside the checkout's `.venv` and one
cache folder ($LASAGNA_CACHE, else ~/.cache/lasagna-assist), except Debian packages when run as root; what cannot be
installed without rights is named with the command to type.
"""

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("LASAGNA_CACHE") or Path.home() / ".cache" / "lasagna-assist").expanduser().resolve()
LABEL_STUDIO = CACHE / "label-studio"
CONSTRAINTS = ROOT / "tools" / "constraints.txt"
STUDIO = ROOT / "tools" / "label-studio.txt"
STUDIO_CONSTRAINTS = ROOT / "tools" / "label-studio-constraints.txt"
OLDER_STUDIO = ROOT / "tools" / "older-label-studio.txt"
REQUIREMENTS = ROOT / "tools" / "requirements"
IMAGE_PYTHON, IMAGE_PLATFORM = "3.11", "x86_64-manylinux_2_28"
"""What backend/Dockerfile runs."""
CUDA_PACKAGES = ("cuda-", "nvidia-", "triton")
BROWSER_PACKAGES = ("chromium", "chromium-driver", "fonts-dejavu-core")


class SetupError(Exception):
    """Set-up cannot go on; the message says why and what to do."""


def main(parts: list[str]) -> int:
    known = {
        "environment": environment,
        "label-studio": label_studio,
        "older-label-studio": older_label_studio,
        "browser": browser,
        "update": update,
        "audit": audit,
        "sbom": sbom,
        "image-requirements": image_requirements,
        "image-digests": image_digests,
    }
    if not parts or set(parts) - set(known):
        print(f"usage: setup.py {'|'.join(known)} ...", file=sys.stderr)
        return 2
    try:
        (CACHE / "logs").mkdir(parents=True, exist_ok=True)
        for part in parts:
            known[part]()
    except SetupError as error:
        say(f"set-up stopped: {error}")
        return 1
    except KeyboardInterrupt:
        say("set-up interrupted; type the same command again to go on")
        return 130
    return 0


# ------------------------------------------------------------------------------------------------------------ the parts


def environment() -> None:
    """The project's own Python environment, `.venv`, with the versions of tools/constraints.txt."""
    folder = ROOT / ".venv"
    files = [ROOT / "pyproject.toml", ROOT / "lab" / "pyproject.toml", CONSTRAINTS]
    key = digest(*(path.read_bytes() for path in files), sys.version.encode(), str(ROOT).encode())
    with part(folder / ".complete", key, lock="environment-" + digest(str(ROOT).encode())) as needed:
        if needed:
            install_project(folder, ["--constraints", CONSTRAINTS])


def install_project(folder: Path, options: list[str | Path]) -> None:
    """This checkout with its laboratory, editable, with all that tests and documents need, and nothing else."""
    # uv reads the groups, and the overrides that they need, from the pyproject.toml of its folder.
    install = [uv(), "pip", "install", "--directory", ROOT, "--python", folder / "bin" / "python", "--exact"]
    run(
        "Python packages of this project, PyTorch among them, into .venv",
        [uv(), "venv", "--quiet", "--allow-existing", "--python", sys.executable, folder],
        [*install, "--editable", ".", "--editable", "lab", "--group", "dev", "--group", "docs", *options],
        env=uv_environment(),
        log="environment",
    )


def update() -> None:
    """The newest versions of everything that pyproject.toml allows into `.venv` and tools/constraints.txt; PyTorch's
    stays, since its build for the CPU comes from elsewhere. Run the tests before the file is committed."""
    folder = ROOT / ".venv"
    head, kept = [], []
    for line in CONSTRAINTS.read_text().splitlines():
        if line.startswith("#"):
            head.append(line)
        elif line.partition("==")[0] in ("torch", "torchvision"):
            kept.append(line)
    torch = CACHE / "torch-constraints.txt"
    torch.write_text("\n".join(kept) + "\n")
    (folder / ".complete").unlink(missing_ok=True)  # so that the next `make` installs what the file then says
    install_project(folder, ["--constraints", torch, "--upgrade"])
    listed = frozen(folder)
    CONSTRAINTS.write_text("\n".join([*head, *listed]) + "\n")
    say(f"{len(listed)} versions written to {CONSTRAINTS}; now: make test")


def frozen(folder: Path) -> list[str]:
    """`name==version` of every package in an environment but this one, sorted."""
    freeze = [uv(), "pip", "freeze", "--exclude-editable", "--python", folder / "bin" / "python"]
    found = subprocess.run(freeze, env=uv_environment(), capture_output=True, text=True, check=True).stdout
    # PyTorch's name for a build is unknown to the index.
    return [line.replace("+cpu", "") for line in found.splitlines()]


def label_studio() -> None:
    """Label Studio in an environment of its own, and an empty database for it."""
    _label_studio(LABEL_STUDIO, [STUDIO, STUDIO_CONSTRAINTS], ["-r", STUDIO, "-c", STUDIO_CONSTRAINTS])


def older_label_studio() -> None:
    """The same of an earlier release, for the fault of `lasagna bench faults` that upgrades Label Studio."""
    _label_studio(CACHE / OLDER_STUDIO.stem, [OLDER_STUDIO], ["-r", OLDER_STUDIO])


def _label_studio(home: Path, files: list[Path], requirements: list[str | Path]) -> None:
    key = digest(*(path.read_bytes() for path in files), sys.version.encode())
    with part(home / ".complete", key, lock=home.name) as needed:
        if not needed:
            return
        shutil.rmtree(home, ignore_errors=True)
        venv, env = home / "venv", uv_environment()
        run(
            f"Label Studio, in an environment of its own in {home} (its pins clash with this project's)",
            [uv(), "venv", "--quiet", "--python", sys.executable, venv],
            # --no-config: else the overrides of our pyproject.toml would count here too.
            [uv(), "pip", "install", "--no-config", "--python", venv / "bin" / "python", *requirements],
            env=env,
            log=home.name,
        )
        run(
            "Label Studio's empty database, which later starts copy",
            # Every command of Label Studio first brings the database up to date; this one does nothing more.
            [venv / "bin" / "label-studio", "version", "--data-dir", home / "database"],
            env={**env, "LABEL_STUDIO_SENTRY_DSN": "", "LABEL_STUDIO_LATEST_VERSION_CHECK": "false"},
            log=f"{home.name}-database",
        )


def browser() -> None:
    """Chromium, its driver and a font: what the tests of the real editor need."""
    if all(shutil.which(program) for program in ("chromium", "chromedriver")):
        return
    command = ["apt-get", "install", "-y", "--no-install-recommends", *BROWSER_PACKAGES]
    if not can_install_packages():
        say(
            "There is no Chromium with chromedriver here, and no right to install it: the tests in a browser are "
            f"skipped. To run them too, type:\n\n    {as_root(command)}\n"
        )
        return
    apt("Chromium, chromedriver and a font, for the tests of the real editor", command)


def audit() -> None:
    """Looks up what is known to be vulnerable among the packages in `.venv`; asks PyPI's advisories about each."""
    environment()
    listed = CACHE / "audit.txt"
    listed.write_text("\n".join(frozen(ROOT / ".venv")) + "\n")
    look_up = ["--strict", "--no-deps", "--disable-pip", "--requirement", listed]
    try:
        run(
            "Known vulnerabilities of every package (needs internet)",
            [uv(), "tool", "run", "pip-audit==2.10.1", *look_up],
            env=uv_environment(),
            log="audit",
        )
    except SetupError as error:
        if any(words in str(error) for words in ("Dependency not found on PyPI", "ConnectionError", "timed out")):
            raise SetupError(
                "nothing was looked up: the advisories of the Python Package Index cannot be reached from here (a "
                f"mirror of packages has none). Run `make audit` where they can be. {listed} has what was to be looked "
                "up, for any other tool; `make sbom` writes it as CycloneDX"
            ) from error
        raise


def sbom() -> None:
    """The bill of materials of an installation of the wheel (CycloneDX, sbom.json): what it brings, with licences."""
    folder, output = CACHE / "sbom", ROOT / "sbom.json"
    python = folder / "bin" / "python"
    install = [
        uv(),
        "pip",
        "install",
        "--no-config",
        "--python",
        python,
        "--constraints",
        CONSTRAINTS,
        f"{ROOT}[train]",
    ]
    list_all = ["cyclonedx-py", "environment", "--pyproject", ROOT / "pyproject.toml", "--output-reproducible"]
    run(
        "The wheel in an empty environment, and the bill of its materials into sbom.json",
        [uv(), "venv", "--quiet", "--clear", "--python", sys.executable, folder],
        install,
        [uv(), "tool", "run", "--from", "cyclonedx-bom==7.5.0", *list_all, "--output-file", output, python],
        env=uv_environment(),
        log="sbom",
    )
    components = json.loads(output.read_text())["components"]
    say(f"{len(components)} packages written to {output}")


def image_requirements() -> None:
    """What each image installs, with the hash of every file of it, into tools/requirements: after `make update`.

    torch comes in a file of its own for each build. The one for the CPU is not on the Python Package Index: it is the
    wheel that PIP_FIND_LINKS has, which the tests run with, else what PyTorch's own index has.
    """
    worker = compiled(ROOT / "pyproject.toml", "--extra", "train")
    cuda = [entry for entry in worker if entry.startswith(("torch==", *CUDA_PACKAGES))]
    build, torch = CACHE / "image-build.txt", CACHE / "image-torch.txt"
    build.write_text("setuptools\nuv\n")
    torch.write_text("torch\n")
    own = uv_environment().get("UV_FIND_LINKS", "")
    source = (
        ["--find-links", own] if list(Path(own or "/nowhere").glob("torch-*+cpu-*.whl")) else ["--torch-backend", "cpu"]
    )
    files = {
        "build": compiled(build),
        "web": compiled("--group", "web"),
        "worker": [entry for entry in worker if entry not in cuda],
        "torch-cpu": [entry for entry in compiled(torch, *source) if entry.startswith("torch==")],
        "torch-cuda": cuda,
    }
    REQUIREMENTS.mkdir(exist_ok=True)
    for name, entries in files.items():
        text = "\n".join(entry.replace(" --hash", " \\\n    --hash") for entry in entries)
        (REQUIREMENTS / f"{name}.txt").write_text(f"# Written by `make image-requirements`.\n{text}\n")
        say(f"{len(entries)} packages with their hashes written to {REQUIREMENTS / f'{name}.txt'}")


def compiled(*sources: str | Path) -> list[str]:
    """Requirements for the images' Python with all that they need, one a line: `name==version --hash=A --hash=B`."""
    command = [uv(), "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--generate-hashes"]
    command += ["--python-version", IMAGE_PYTHON, "--python-platform", IMAGE_PLATFORM, "--constraint", CONSTRAINTS]
    words = [str(word) for word in (*command, *sources)]
    env = {name: value for name, value in uv_environment().items() if name != "UV_FIND_LINKS"}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SetupError(f"{' '.join(words)} failed:\n{done.stderr.strip()}")
    return [" ".join(entry.replace("\\", "").split()) for entry in re.split(r"\n(?=\S)", done.stdout.strip())]


def image_digests() -> None:
    """Writes the digest of each foreign image, as its registry has it now, behind its tag (needs Docker, internet)."""
    if shutil.which("docker") is None:
        raise SetupError("there is no docker here, which asks the registries; run `make image-digests` where it is")
    for path, pattern in (
        (ROOT / "docker-compose.yml", r"(?<=image: )(?!lasagna-)(?P<image>[\w./-]+:[\w.-]+)(@sha256:\w+)?"),
        (ROOT / "backend" / "Dockerfile", r"(?<=ARG PYTHON=)(?P<image>[\w.-]+)(@sha256:\w+)?"),
    ):
        path.write_text(re.sub(pattern, pinned, path.read_text()))


def pinned(found: re.Match[str]) -> str:
    """An image's tag with its digest."""
    name = found["image"] if ":" in found["image"] else f"python:{found['image']}"
    ask = ["docker", "buildx", "imagetools", "inspect", name, "--format", "{{.Manifest.Digest}}"]
    done = subprocess.run(ask, capture_output=True, text=True, check=False)
    digest = done.stdout.strip()
    if done.returncode or not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise SetupError(f"{' '.join(ask)} said no digest: {(done.stderr or done.stdout).strip()}")
    say(f"{name} is {digest}")
    return f"{found['image']}@{digest}"


def uv() -> str:
    """The program uv: from the PATH, else from a small environment in the cache folder, made here."""
    found = shutil.which("uv")
    if found:
        return found
    folder = CACHE / "uv"
    program = folder / "bin" / "uv"
    with part(folder / ".complete", sys.version, lock="uv") as needed:
        if needed:
            shutil.rmtree(folder, ignore_errors=True)
            if importlib.util.find_spec("ensurepip") is None and importlib.util.find_spec("pip") is None:
                install_venv()
            # Debian leaves ensurepip out of python3 (it is in python3-venv); where pip is there, --target does as well.
            has_venv = importlib.util.find_spec("ensurepip") is not None
            pip = [folder / "bin" / "python", "-m", "pip"] if has_venv else [sys.executable, "-m", "pip"]
            make = [[sys.executable, "-m", "venv", folder]] if has_venv else []
            into = [] if has_venv else ["--target", folder]
            run(
                f"uv, which installs the rest, into {folder}",
                *make,
                [*pip, "install", "--quiet", "--disable-pip-version-check", *into, "uv"],
                log="uv",
            )
    return str(program)


def install_venv() -> None:
    """Debian's package with ensurepip for this Python."""
    package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
    command = ["apt-get", "install", "-y", "--no-install-recommends", package]
    if not can_install_packages():
        raise SetupError(f"{sys.executable} has neither pip nor ensurepip; type:\n\n    {as_root(command)}\n")
    apt(f"{package}: this Python cannot make environments without it", command)
    importlib.invalidate_caches()


def uv_environment() -> dict[str, str]:
    """Our environment variables with uv's own, taken over from pip's where only those are set."""
    env = dict(os.environ)
    env.pop("VIRTUAL_ENV", None)
    env |= {"UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1"}
    if env.get("PIP_FIND_LINKS"):
        env.setdefault("UV_FIND_LINKS", ",".join(env["PIP_FIND_LINKS"].split()))
    if env.get("PIP_INDEX_URL"):
        env.setdefault("UV_DEFAULT_INDEX", env["PIP_INDEX_URL"])
    return env


# ---------------------------------------------------------------------------------------------------------------- tools


@contextmanager
def part(stamp: Path, key: str, *, lock: str) -> Iterator[bool]:
    """Whether the part has to be made; it is stamped when the block ends well. One process at a time."""
    with (CACHE / f"{lock}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another set-up that is at work ...")
            fcntl.flock(file, fcntl.LOCK_EX)
        needed = not stamp.is_file() or stamp.read_text() != key
        if needed:
            stamp.unlink(missing_ok=True)
        yield needed
        if needed:
            stamp.write_text(key)


def run(title: str, *commands: list[str | Path], env: Mapping[str, str] | None = None, log: str) -> None:
    """Runs the commands one after the other, output into a log file; says what is done and how long it takes."""
    path = CACHE / "logs" / f"{log}.log"
    say(f"{title} ...")
    started, told = time.monotonic(), 0.0
    with path.open("wb") as output:
        for command in commands:
            output.write(f"$ {' '.join(map(str, command))}\n".encode())
            output.flush()
            process = subprocess.Popen(
                [str(word) for word in command],
                env=None if env is None else dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                while process.poll() is None:
                    time.sleep(0.1)
                    seconds = time.monotonic() - started
                    if seconds - told >= 30:
                        told = seconds
                        say(f"  still at it after {seconds:.0f} s (log: {path})")
            except BaseException:
                process.terminate()
                process.wait()
                raise
            if process.returncode:
                end = path.read_text(errors="replace").splitlines()[-25:]
                raise SetupError(
                    f"{command[0]} failed with exit code {process.returncode}. The log, {path}, ends:\n\n"
                    + "\n".join("    " + line for line in end)
                )
    say(f"  done in {time.monotonic() - started:.0f} s")


def can_install_packages() -> bool:
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def as_root(command: list[str]) -> str:
    return ("" if os.geteuid() == 0 else "sudo ") + " ".join(command)


def apt(title: str, command: list[str]) -> None:
    """Installs Debian packages (as root)."""
    wait = ["-o", "DPkg::Lock::Timeout=300"]
    run(
        title,
        ["apt-get", "update", "-q"],
        [command[0], *wait, "-q", *command[1:]],
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        log="apt",
    )


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
