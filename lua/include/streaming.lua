-- The expiry of a stream; to be included below WRITE.

-- Let the keys of a stream expire with it. `streams` lives as long as the last of the session's streams, and a bit
-- longer, so that its expiry rarely moves.
local function expire_stream(streams, events, stream, now)
  local expires = stream.deadline + stream.keep
  redis.call('PEXPIREAT', events, expires)
  if now + redis.call('PTTL', streams) < expires + 1000 then redis.call('PEXPIREAT', streams, expires + 10000) end
end
