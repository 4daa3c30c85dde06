-- The end of a stream that a commit finishes (see plan_finish); to be included below WRITE.

local function finish_stream(streams, events, finished, sharded)
  redis.call('HSET', streams, finished[1], finished[2])
  redis.call('PEXPIREAT', events, finished[3])
  announce(sharded, events, 'ended')
end
