"""A sandbox that ends after each command and is resumed by the next process, with its files.

    python sandbox.py box-1 "echo 'print(6 * 7)' > answer.py"
    python sandbox.py box-1 "python3 answer.py"
    python sandbox.py box-1 --history

One commit stores the command, its output and the files. A sandbox that is killed leaves the files of the last command.
Without SANDBOX_REDIS_URL an embedded server stores the sessions in the directory `sandboxes`.
Install: pip install '.[embedded]', from a checkout.
"""

import argparse
import asyncio
import io
import os
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

import lash_redis
from lash_redis import (
    ActivePath,
    Append,
    HydratedSessionCheckpoint,
    PersistedSessionRead,
    RuntimeCommit,
    SessionGraph,
)


def pack(folder: Path) -> bytes:
    """Pack the files except those that `unpack` refuses: links that lead out of the folder, devices and pipes."""

    def kept(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        try:
            tarfile.data_filter(member, str(folder))
        except tarfile.FilterError:
            return None
        return member

    with io.BytesIO() as packed:
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            archive.add(folder, arcname=".", filter=kept)
        return packed.getvalue()


def unpack(packed: bytes, folder: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")


def run(command: str, state: bytes | None) -> tuple[str, bytes]:
    """Run a command in a folder with the files of `state`; return its output and the files that it left."""
    with TemporaryDirectory() as name, TemporaryFile() as output:
        folder = Path(name)
        if state is not None:
            unpack(state, folder)
        # A pipe would stay open as long as a background process of the command.
        subprocess.run(command, shell=True, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        output.seek(0)
        return output.read().decode(errors="replace"), pack(folder)


async def main(session_id: str, command: str | None) -> None:
    """Run a command in a sandbox and print its output. None: print the commands so far, with their outputs."""
    url = os.environ.get("SANDBOX_REDIS_URL", "embedded://sandboxes")
    async with lash_redis.connect(url, namespace="sandboxes", ttl=7 * 86_400) as cache:
        chat = cache.chat(session_id)
        if command is None:
            for message in await chat.messages():
                print("$" if message["role"] == "user" else ">", message["content"].rstrip())
            return
        async with await chat.store.acquire_lease(ttl=10.0, wait=60.0) as lease, lease.renewing():
            loaded = await chat.store.load_checkpoint()
            output, state = await asyncio.to_thread(run, command, loaded and loaded[1].execution_state)

            def turn(read: PersistedSessionRead | None) -> RuntimeCommit:
                graph, checkpoint = SessionGraph(), HydratedSessionCheckpoint()
                if read is not None:
                    graph, checkpoint = read.graph, read.checkpoint or checkpoint
                grown = graph.append_message({"role": "user", "content": command})
                grown = grown.append_message({"role": "tool", "tool_call_id": "shell", "content": output})
                checkpoint = replace(checkpoint, execution_state=state, execution_state_ref=None)
                return RuntimeCommit(session_id, graph=Append(grown.nodes[-2:]), checkpoint=checkpoint, lease=lease)

            await chat.store.update(turn, since=await chat.store.load_session(ActivePath(limit=1)))
        print(output, end="")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("session_id")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("command", nargs="?")
    what.add_argument("--history", action="store_true")
    asked = parser.parse_args()
    asyncio.run(main(asked.session_id, asked.command))
