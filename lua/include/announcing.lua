-- Tell who watches a session, on the channel that is named like its head's key; for the end of a script, below WRITE.
--
-- What is told of a commit is its revision, the session's deadline (ms since 1970; 0: never) and the commit's tag; of a
-- deletion, `deleted`. A watcher looks at the head now and then all the same, so an account without the right to
-- publish, or a server that refuses it, makes watchers late and fails no commit.
local function announce(sharded, head, message)
  -- Redis 6.2 knows neither REDIS_VERSION_NUM nor SPUBLISH; its clusters pass PUBLISH on to all nodes.
  if sharded and redis.REDIS_VERSION_NUM then
    redis.pcall('SPUBLISH', head, message)
  else
    redis.pcall('PUBLISH', head, message)
  end
end
