-- The lease of a session, in the head's field `lease`: generation (a counter, to 2^63-1), deadline (ms since 1970 by
-- the server's clock), token, owner, separated by blanks. A released lease keeps its generation. Its deadline is 0, its
-- token is empty, and its owner is empty or the id of the release. So the generation counts the changes of the holder,
-- and it never repeats while the session exists.

-- Decode the field; nil if it is unreadable.
local function read_lease(text)
  local generation, deadline, token, owner = string.match(text, '^(%d+) (%d+) (%S*) (.*)$')
  if not generation or not is_int64(generation) or is_odd(deadline) then return nil end
  return {generation = generation, deadline = tonumber(deadline), token = token, owner = owner}
end

local function write_lease(generation, deadline, token, owner)
  return table.concat({generation, string.format('%.0f', deadline), token, owner}, ' ')
end

-- Nil while the lease of `token` and `owner` is held, else the reason: gone (the head has no lease), released, taken or
-- expired.
local function lost(lease, token, owner, now)
  if not lease then return 'gone' end
  if lease.token == '' then return 'released' end
  if lease.token ~= token or lease.owner ~= owner then return 'taken' end
  return lease.deadline <= now and 'expired' or nil
end

-- The deadline of a session (0: never), moved to that of its lease if it is earlier: a lease ends with its session.
local function outlasting(deadline, lease)
  return deadline > 0 and lease and math.max(deadline, lease.deadline) or deadline
end

-- The new deadline of a session, 0 for never. Its ttl is `given`, else its `own`, else the `default` (ms; '' or false
-- for none).
local function deadline_of(given, own, default, lease, now)
  local ttl = given ~= '' and given or own
  ttl = ttl and tonumber(ttl) or default
  return outlasting(ttl > 0 and now + ttl or 0, lease)
end

-- The deadline of the session itself; 0 for never, and for a session that has only a lease. A session with only meta
-- has no stored deadline, so its key's expiry is used.
local function lives_until(head, facts, is_alone, now)
  if facts or is_alone then return facts and facts.deadline or 0 end
  local left = redis.call('PTTL', head)
  return left < 0 and 0 or now + left
end

-- Decode a head's lease (false for none). The second value has what decides on it: whether the session was deleted,
-- whether the session exists only by its lease, and its facts. If something is wrong, the third value is the rest of a
-- reply. `access` is the owner for whom the caller acts (see is_foreign).
local function open_lease(head, access)
  local stored = redis.pcall('HMGET', head, 'lease', 'facts', 'meta', 'deleted', 'owner', 'inputs')
  if stored.err then return nil, nil, unusable('head', stored) end
  if is_foreign(access, stored[5], stored[2]) then return nil, nil, {'foreign'} end
  local lease, facts = stored[1] and read_lease(stored[1]), stored[2] and read_facts(stored[2])
  if lease == nil then return nil, nil, {'corrupt', 'head', 'its lease is unreadable'} end
  if facts == nil then return nil, nil, {'corrupt', 'head', 'its facts are unreadable'} end
  return lease, {is_deleted = stored[4], is_alone = not (facts or stored[3] or stored[6]), facts = facts}
end

-- Nil while the lease that `claim` names (generation, token and owner, separated by blanks) is held, else the reason.
local function lost_claim(lease, claim, now)
  local generation, token, owner = string.match(claim, '^(%d+) (%S+) (.*)$')
  return lost(lease, token, owner, now) or lease.generation ~= generation and 'taken' or nil
end

-- Whether `claim` names this lease.
local function is_claim(lease, claim)
  return lease and claim == lease.generation .. ' ' .. lease.token .. ' ' .. lease.owner
end
