-- Publish a change on a channel; for the end of a script.
--
-- The channel of a session has the name of its head, that of a stream the name of its events; a stop request has a
-- channel of its own. A subscriber reads the key after any message, because the databases of a server share their
-- channels. It also reads the key periodically. So if the account may not publish, or the server refuses it,
-- subscribers are late, but no script fails.
local function announce(sharded, channel, message)
  -- Redis 6.2 has neither REDIS_VERSION_NUM nor SPUBLISH; its clusters forward PUBLISH to all nodes.
  if sharded and redis.REDIS_VERSION_NUM then
    redis.pcall('SPUBLISH', channel, message)
  else
    redis.pcall('PUBLISH', channel, message)
  end
end
