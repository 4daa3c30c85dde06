-- The head's `facts`: sixteen numbers in one field, because a field of its own costs 40 to 70 bytes a
-- session. In this order, separated by blanks:
--   revision   counter, to 2^63-1
--   epoch      which log this is: ms since 1970 when it began, with the session or with a ReplaceFull that drops nodes.
--              It only grows; and it tells two logs apart that began on both sides of a failover
--   length     elements of the log, vacuumed ones included
--   live       nodes that reads show
--   jumps      elements of the jump list
--   dead       fields of the dead hash
--   ids        fields of the nodes hash
--   bytes      sum of the log's elements
--   leaf       position of the leaf; -1: none
--   usage      rows of the ledger
--   loose      1: links are by id alone (lenient checks let a parent in that no position can express)
--   deadline   ms since 1970 at which every key of the session expires; 0: never
--   hold       until when the session holds its blobs and its place in the catalogue, ms since 1970; 0: for ever
--   committed  ms since 1970 of the last commit
--   users      live nodes that are a user's message
--   first      position of the first of them; -1: none; -2: it was tombstoned, look for the next
-- Other fields of a head: refs, body, receipts, meta, ledger rows, and where the session has them `ttl` (ms, its own),
-- `parent` and `lease` (see lease.lua). A head that is only `deleted` keeps late writers of a deleted session out.

local FACTS = '^(%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%-?%d+) (%d+) ([01]) (%d+) (%d+) (%d+) (%d+) (%-?%d+)$'

-- Numbers are those that scripts compare or count with; the others stay strings, which costs less.
local function read_facts(text)
  local revision, epoch, length, live, jumps, dead, ids, bytes, leaf, usage, loose, deadline, hold, committed, users,
    first = string.match(text, FACTS)
  if not revision or #revision > 19 or (#revision == 19 and revision > '9223372036854775807') then return nil end
  return {
    revision = revision, epoch = epoch, length = length + 0, live = live + 0, jumps = jumps + 0, dead = dead + 0,
    ids = ids + 0, bytes = bytes, leaf = leaf, usage = usage + 0, loose = loose, deadline = deadline + 0, hold = hold,
    committed = committed, users = users + 0, first = first + 0,
  }
end

-- Some machines take no more than 31 bits for %d.
local function write_facts(f)
  return string.format('%s %s %d %d %d %d %d %.0f %d %d %s %.0f %s %s %d %d', f.revision, f.epoch, f.length, f.live,
    f.jumps, f.dead, f.ids, f.bytes, f.leaf, f.usage, f.loose, f.deadline, f.hold, f.committed, f.users, f.first)
end

-- The session's facts, or nil where it has no head. Where something is wrong, the second value is the rest of a reply.
-- The third is what the head holds: facts as text, refs, receipts, and false for a ttl, parent, deletion or lease that
-- is not there.
-- The further arguments are keys that cannot be there without a head.
local function open_head(head, ...)
  local stored = redis.pcall('HMGET', head, 'facts', 'refs', 'receipts', 'ttl', 'parent', 'deleted', 'lease')
  if stored.err then return nil, unusable('head', stored) end
  local others = {
    facts = stored[1], refs = stored[2] or '', receipts = stored[3] or '', ttl = stored[4], parent = stored[5],
    deleted = stored[6], lease = stored[7],
  }
  if others.ttl and not string.match(others.ttl, '^%d+$') then
    return nil, {'corrupt', 'head', 'its ttl is unreadable'}
  end
  if not stored[1] then
    if stored[2] or stored[3] then return nil, {'corrupt', 'head', 'its facts are gone'} end
    if redis.call('EXISTS', ...) > 0 then
      return nil, {'evicted', 'head', 'is gone, other keys of the session remain'}
    end
    return nil, nil, others
  end
  local facts = read_facts(stored[1])
  if not facts then return nil, {'corrupt', 'head', 'its facts are unreadable'} end
  if #others.refs ~= 0 and #others.refs ~= 96 then return nil, {'corrupt', 'head', 'its refs are unreadable'} end
  if not (stored[2] and stored[3]) then return nil, {'corrupt', 'head', 'its refs or receipts are gone'} end
  return facts, nil, others
end

-- The position that an entry of the nodes hash gives, or nil for one that points outside the log; and whether the node
-- is a user's message.
local function place_of(entry, facts)
  local digits, mark = string.match(entry, '^(%d+)(u?)$')
  local place = digits and tonumber(digits)
  if not place or place >= facts.length then return nil end
  return place, mark == 'u'
end

-- Nil when `key` holds what the head says, else the rest of a reply: evicted (gone) or corrupt (another type or size).
local function mismatch(family, command, key, expected)
  local size = redis.pcall(command, key)
  if size == expected then return nil end
  if type(size) == 'table' then return unusable(family, size) end
  if size == 0 then return {'evicted', family, 'is gone, the head counts ' .. expected .. ' entries'} end
  return {'corrupt', family, 'has ' .. size .. ' entries, the head counts ' .. expected}
end

-- Nil when every key of the session holds what its head says, else the rest of a reply.
local function torn(facts, log, nodes, jumps, dead)
  return mismatch('log', 'LLEN', log, facts.length) or mismatch('nodes', 'HLEN', nodes, facts.ids)
    or mismatch('jumps', 'LLEN', jumps, facts.jumps) or mismatch('dead', 'HLEN', dead, facts.dead)
end
