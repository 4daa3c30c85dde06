-- Open the stream of a generation, and plan what to drop from it.

-- Whether a stream has expired. Its events then expire at the same moment.
local function is_over(stream, now)
  return stream.deadline + stream.keep <= now
end

-- Opens the stream of a generation. Returns it (false for none, or if it has expired), the time, and the owner of the
-- session's streams ('' for none). On a fault it returns nil and the rest of a reply.
local function open_stream(head, streams, events, generation, access)
  local stored = redis.pcall('HMGET', head, 'facts', 'owner', 'deleted')
  if stored.err then return nil, unusable('head', stored) end
  local found = redis.pcall('HMGET', streams, generation, '')
  if found.err then return nil, unusable('streams', found) end
  local text, owner = found[1], found[2]
  if is_foreign(access, stored[2], stored[1]) or is_foreign(access, owner, false) then return nil, {'foreign'} end
  if stored[3] then return nil, {'deleted'} end
  local now = milliseconds()
  owner = owner or stored[2] or access
  if not text then
    if redis.call('EXISTS', events) == 1 then
      return nil, {'evicted', 'streams', 'is gone, events of its streams remain'}
    end
    return false, now, owner
  end
  local stream = read_stream(text, now)
  if not stream then return nil, {'corrupt', 'streams', 'a record is unreadable'} end
  if is_over(stream, now) then return false, now, owner end
  local wrong = mismatch('events', 'LLEN', events, stream.kept)
  if wrong then return nil, wrong end
  return stream, now, owner
end

-- The number of stored events to drop, and their bytes, so that with `count` more of `size` bytes the bounds hold.
local function plan_drop(events, stream, count, size, max_events, max_bytes)
  local drop, freed = 0, 0
  local function is_within()
    return stream.kept - drop + count <= max_events and stream.bytes - freed + size <= max_bytes
  end
  while drop < stream.kept and not is_within() do
    -- Estimate how many events exceed the bounds, to read few more than are dropped.
    local excess = math.ceil((stream.bytes - freed + size - max_bytes) * stream.kept / stream.bytes)
    local chunk = math.min(100, math.max(1, stream.kept - drop + count - max_events, excess))
    for _, element in ipairs(redis.call('LRANGE', events, drop, drop + chunk - 1)) do
      if is_within() then break end
      drop, freed = drop + 1, freed + #element
    end
  end
  return drop, freed
end
