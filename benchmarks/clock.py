"""Run a command and report its time and peak memory: `python -m benchmarks.clock COMMAND...`.

This is a separate small process without torch, because the memory of a parent counts towards the peak of its child.
"""

import json
import os
import subprocess
import sys
import time


def main() -> None:
    if sys.platform == "win32":
        raise SystemExit(
            "benchmarks need a POSIX system: Windows does not report the resources that a child process used"
        )
    start = time.perf_counter()
    process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    message = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    taken = {"seconds": [wall], "peak_bytes": usage.ru_maxrss * 1024, "user_s": usage.ru_utime}
    process.returncode = os.waitstatus_to_exitcode(status)
    failed = {"failed": f"status {process.returncode}: {message[-500:]}"}
    print(json.dumps(failed if process.returncode else taken))


if __name__ == "__main__":
    main()
