"""The commands, with their options, help texts and exit codes; the help lists them in the order of these imports."""

from lash_redis.cli.commands import sessions, files, servers  # isort: skip
from lash_redis.cli.commands.app import app

__all__ = ["app", "files", "servers", "sessions"]
