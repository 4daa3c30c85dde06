-- The head's `facts`: eighteen numbers in one field, because a field of its own costs 40 to 70 bytes a session. In this
-- order, separated by blanks:
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
--   high, low  the sum of the log, of two halves modulo 2^32: the value of each node that was appended, times
--              2 * position + 1; tombstoned and vacuumed nodes stay in it (see lash_redis/protocol/sums.py)
-- `refs` names the components: for each (tool state, plugin snapshot, execution state) one byte that says where its
-- bytes are, and the 32 bytes of its ref. `-` it is absent; `h` held: a blob of the shard, counted; `p` private: in the
-- session's own `state`. The field is empty where all three are absent.
-- Other fields of a head: body, receipts, meta, ledger rows, and where the session has them `ttl` (ms, its own),
-- `parent` and `lease` (see lease.lua). A head that is only `deleted` keeps late writers of a deleted session out.

local FACTS = '^(%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%-?%d+) (%d+) ([01]) (%d+) (%d+) (%d+) (%d+) (%-?%d+)'
local SUM = ' (%d+) (%d+)$'

-- Numbers are those that scripts compare or count with; the others stay strings, which costs less.
local function read_facts(text)
  local revision, epoch, length, live, jumps, dead, ids, bytes, leaf, usage, loose, deadline, hold, committed, users,
    first, high, low = string.match(text, FACTS .. SUM)
  if not revision or #revision > 19 or (#revision == 19 and revision > '9223372036854775807') then return nil end
  return {
    revision = revision, epoch = epoch, length = length + 0, live = live + 0, jumps = jumps + 0, dead = dead + 0,
    ids = ids + 0, bytes = bytes, leaf = leaf, usage = usage + 0, loose = loose, deadline = deadline + 0, hold = hold,
    committed = committed, users = users + 0, first = first + 0, private = 0, high = high, low = low,
  }
end

-- Some machines take no more than 31 bits for %d.
local function write_facts(f)
  return string.format('%s %s %d %d %d %d %d %.0f %d %d %s %.0f %s %s %d %d %.0f %.0f', f.revision, f.epoch, f.length,
    f.live, f.jumps, f.dead, f.ids, f.bytes, f.leaf, f.usage, f.loose, f.deadline, f.hold, f.committed, f.users,
    f.first, f.high, f.low)
end

-- The facts of a session that begins. An epoch is never used twice, even if the session expires and begins again,
-- because a path is read in two trips.
local function new_facts(now)
  return {
    epoch = now, length = 0, live = 0, jumps = 0, dead = 0, ids = 0, bytes = 0, usage = 0, loose = '0', deadline = 0,
    hold = '0', users = 0, first = -1, private = 0, high = 0, low = 0,
  }
end

-- 1 for a component that is private, 0 for another; nil where the byte that says so is none of the three.
local function is_private(kind)
  if kind == 112 then return 1 end
  return (kind == 104 or kind == 45) and 0 or nil
end

-- How many components `refs` says are private; nil where it is unreadable.
local function count_private(refs)
  if refs == '' then return 0 end
  if #refs ~= 99 then return nil end
  local tools, plugin = is_private(string.byte(refs, 1)), is_private(string.byte(refs, 34))
  local execution = is_private(string.byte(refs, 67))
  return tools and plugin and execution and tools + plugin + execution
end

-- The session's facts, or nil where it has no head. Where something is wrong, the second value is the rest of a reply.
-- The third is what the head holds: facts as text, refs, receipts, and false for a ttl, parent, deletion or lease that
-- is not there; behind these seven stand the `rows`, the further fields that are asked for (nil: none).
-- `others` are the keys that cannot be there without a head.
local function open_head(head, others, rows)
  local stored
  if rows then
    stored = redis.pcall('HMGET', head, 'facts', 'refs', 'receipts', 'ttl', 'parent', 'deleted', 'lease', unpack(rows))
  else
    stored = redis.pcall('HMGET', head, 'facts', 'refs', 'receipts', 'ttl', 'parent', 'deleted', 'lease')
  end
  if stored.err then return nil, unusable('head', stored) end
  local text, refs, receipts, ttl = stored[1], stored[2], stored[3], stored[4]
  stored.facts, stored.refs, stored.receipts, stored.ttl = text, refs or '', receipts or '', ttl
  stored.parent, stored.deleted, stored.lease = stored[5], stored[6], stored[7]
  if ttl and not string.match(ttl, '^%d+$') then
    return nil, {'corrupt', 'head', 'its ttl is unreadable'}
  end
  if not text then
    if refs or receipts then return nil, {'corrupt', 'head', 'its facts are gone'} end
    if redis.call('EXISTS', unpack(others)) > 0 then
      return nil, {'evicted', 'head', 'is gone, other keys of the session remain'}
    end
    return nil, nil, stored
  end
  local facts = read_facts(text)
  if not facts then return nil, {'corrupt', 'head', 'its facts are unreadable'} end
  facts.private = count_private(stored.refs)
  if not facts.private then return nil, {'corrupt', 'head', 'its refs are unreadable'} end
  if not (refs and receipts) then return nil, {'corrupt', 'head', 'its refs or receipts are gone'} end
  return facts, nil, stored
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
local function torn(facts, log, nodes, jumps, dead, state)
  return mismatch('log', 'LLEN', log, facts.length) or mismatch('nodes', 'HLEN', nodes, facts.ids)
    or mismatch('jumps', 'LLEN', jumps, facts.jumps) or mismatch('dead', 'HLEN', dead, facts.dead)
    or mismatch('state', 'HLEN', state, facts.private)
end

-- The same for a commit. It skips keys that it neither reads nor writes and of which the head counts no entry:
-- tombstones, and jumps and state where it adds no node and no component. `keys` are those behind the head.
local function torn_for_commit(facts, keys, adds_nodes, adds_state)
  local log, nodes, jumps, dead, state = unpack(keys)
  return mismatch('log', 'LLEN', log, facts.length) or mismatch('nodes', 'HLEN', nodes, facts.ids)
    or (facts.jumps > 0 or adds_nodes) and mismatch('jumps', 'LLEN', jumps, facts.jumps)
    or facts.dead > 0 and mismatch('dead', 'HLEN', dead, facts.dead)
    or (facts.private > 0 or adds_state) and mismatch('state', 'HLEN', state, facts.private) or nil
end
