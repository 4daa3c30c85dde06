"""`python -m lash_redis.cli`."""

from lash_redis.cli import main

if __name__ == "__main__":
    main()
