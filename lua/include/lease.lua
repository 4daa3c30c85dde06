-- Who alone works on a session, in the head's field `lease`: generation (a counter, to 2^63-1), deadline (ms since 1970
-- by the server's clock), token, owner, separated by blanks. A released lease keeps its generation, with deadline 0, no
-- token and at most the name of its release behind: so the generation counts the changes of hands and never comes round
-- again while the session lives.

-- What the field holds; nil where it is unreadable.
local function read_lease(text)
  local generation, deadline, token, owner = string.match(text, '^(%d+) (%d+) (%S*) (.*)$')
  if not generation or #generation > 19 or #deadline > 15
    or (#generation == 19 and generation > '9223372036854775807') then
    return nil
  end
  return {generation = generation, deadline = tonumber(deadline), token = token, owner = owner}
end

local function write_lease(generation, deadline, token, owner)
  return table.concat({generation, string.format('%.0f', deadline), token, owner}, ' ')
end

-- Nil while the lease of `token` and `owner` is held, else why it is not: gone (none is there), released, taken or
-- expired.
local function lost(lease, token, owner, now)
  if not lease then return 'gone' end
  if lease.token == '' then return 'released' end
  if lease.token ~= token or lease.owner ~= owner then return 'taken' end
  return lease.deadline <= now and 'expired' or nil
end

-- When a session expires that else would at `deadline` (0: never): not before its lease, which would end with it.
local function outlasting(deadline, lease)
  return deadline > 0 and lease and math.max(deadline, lease.deadline) or deadline
end

-- When a session expires from now on, 0 for never: by the ttl it is given, its own or the default (ms; '' or false for
-- none).
local function deadline_of(given, own, default, lease, now)
  local ttl = given ~= '' and given or own
  ttl = ttl and tonumber(ttl) or default
  return outlasting(ttl > 0 and now + ttl or 0, lease)
end

-- Until when the session itself lives; 0: for ever, or it is nothing but a lease. One that has only meta knows of no
-- deadline but that of its key.
local function lives_until(head, facts, is_alone, now)
  if facts or is_alone then return facts and facts.deadline or 0 end
  local left = redis.call('PTTL', head)
  return left < 0 and 0 or now + left
end

-- A head's lease (false for none), and what it hangs on: whether the session was deleted, whether the head is nothing
-- but a lease, its facts. Where something is wrong, the third value is the rest of a reply.
local function open_lease(head)
  local stored = redis.pcall('HMGET', head, 'lease', 'facts', 'meta', 'deleted')
  if stored.err then return nil, nil, unusable('head', stored) end
  local lease, facts = stored[1] and read_lease(stored[1]), stored[2] and read_facts(stored[2])
  if lease == nil then return nil, nil, {'corrupt', 'head', 'its lease is unreadable'} end
  if facts == nil then return nil, nil, {'corrupt', 'head', 'its facts are unreadable'} end
  return lease, {is_deleted = stored[4], is_alone = not (facts or stored[3]), facts = facts}
end

-- Nil while the lease that `claim` names (generation, token and owner, a blank between) is held, else why it is not.
local function lost_claim(lease, claim, now)
  local generation, token, owner = string.match(claim, '^(%d+) (%S+) (.*)$')
  return lost(lease, token, owner, now) or lease.generation ~= generation and 'taken' or nil
end

-- Whether `claim` names this lease.
local function is_claim(lease, claim)
  return lease and claim == lease.generation .. ' ' .. lease.token .. ' ' .. lease.owner
end
