-- Publish a change to the watchers of a session, on the channel with the name of its head; for the end of a script.
--
-- The message is `committed` or `deleted`. A watcher reads the head after any message, because the databases of a
-- server share their channels. It also reads the head periodically. So if the account may not publish, or the server
-- refuses it, watchers are late, but no commit fails.
local function announce(sharded, head, message)
  -- Redis 6.2 has neither REDIS_VERSION_NUM nor SPUBLISH; its clusters forward PUBLISH to all nodes.
  if sharded and redis.REDIS_VERSION_NUM then
    redis.pcall('SPUBLISH', head, message)
  else
    redis.pcall('PUBLISH', head, message)
  end
end
