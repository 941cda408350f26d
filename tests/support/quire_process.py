"""The `quire` command as a user runs it."""

import asyncio
import os
import sys


async def run_quire(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
    """Run a command to its end; return its status, output and errors. A warning is an error."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "quire.cli", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONWARNINGS": "error"},
    )
    out, err = await process.communicate(stdin.encode())
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()
