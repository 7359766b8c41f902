"""Starts `t2g` in processes of their own, quickly: copies of one that has imported all they need.

Runs as a script that reads orders from stdin, JSON, one a line: {"arguments", "environment",
"log"}. For each it prints the id of the process, and later, when that has ended, its status.
"""

import json
import os
import signal
import subprocess
import sys
import threading

from t2g_jax import cli


class Starter:
    """The script, started from a test. To be closed.

    programs: the folder that keeps what is compiled.
    """

    def __init__(self, programs):
        environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        environment |= {
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "T2G_COMPILATION_CACHE": "off",
            "JAX_COMPILATION_CACHE_DIR": str(programs),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        }
        self.script = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.statuses: dict[int, int] = {}
        self.started: list[int] = []
        self.news = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self, arguments, environment, log) -> int:
        """The id of a process that runs `t2g` with these arguments, its output going to a file."""
        order = {
            "arguments": [str(word) for word in arguments],
            "environment": {name: str(value) for name, value in environment.items()},
            "log": str(log),
        }
        with self.news:
            before = len(self.started)
            self.script.stdin.write(json.dumps(order) + "\n")
            self.script.stdin.flush()
            assert self.news.wait_for(lambda: len(self.started) > before, timeout=60)
            return self.started[-1]

    def status(self, process, timeout) -> int:
        """The exit status of a process, minus the signal that killed it."""
        with self.news:
            assert self.news.wait_for(lambda: process in self.statuses, timeout), "it goes on"
            return self.statuses[process]

    def close(self):
        self.script.stdin.close()
        self.script.wait(60)

    def _listen(self):
        for line in self.script.stdout:
            said, process, *status = line.split()
            with self.news:
                if said == "started":
                    self.started.append(int(process))
                else:
                    self.statuses[int(process)] = int(status[0])
                self.news.notify_all()


def _serve():
    from t2g_jax.phases import pipeline  # noqa: F401  so that copies have it

    say = threading.Lock()

    def tell(*words):
        with say:
            print(*words, flush=True)

    def wait(process):
        _, status = os.waitpid(process, 0)
        tell("ended", process, os.waitstatus_to_exitcode(status))

    for line in sys.stdin:
        order = json.loads(line)
        with say:  # or the copy may find stdout locked by a thread that it does not have
            process = os.fork()
            if process == 0:
                _become(order)
        tell("started", process)
        threading.Thread(target=wait, args=(process,)).start()


def _become(order):
    os.environ.update(order["environment"])
    output = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(descriptor, target)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # not if tests run in the background
    sys.argv = ["t2g", *order["arguments"]]
    status = 1
    try:
        status = cli.main(order["arguments"])
    except SystemExit as error:
        status = int(error.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()
