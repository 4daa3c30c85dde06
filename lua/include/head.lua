-- The head's `facts`: eighteen numbers in one field, because each further field costs 40 to 70 bytes a session. In this
-- order, separated by blanks:
--   revision   counter, to 2^63-1
--   epoch      the id of the log: ms since 1970 when it began, with the session or with a ReplaceFull that drops nodes.
--              It only grows. It distinguishes two logs that began before and after a failover
--   length     elements of the log, vacuumed ones included
--   live       nodes that reads return
--   jumps      elements of the jump list
--   dead       fields of the dead hash
--   ids        fields of the nodes hash
--   bytes      sum of the log's elements
--   leaf       position of the leaf; -1: none
--   usage      rows of the ledger
--   loose      1: links are by id only (lenient checks accepted a parent that no position can express)
--   deadline   ms since 1970 at which every key of the session expires; 0: never
--   hold       ms since 1970 until which the session holds its blobs and its catalogue entry; 0: without end
--   committed  ms since 1970 of the last commit
--   users      live nodes that are a user's message
--   first      position of the first of them; -1: none; -2: it was tombstoned, search for the next
--   high, low  the two halves of the log's sum, each modulo 2^32: the value of each node that was appended, times
--              2 * position + 1. Tombstoned and vacuumed nodes stay in it (see lash_redis/protocol/sums.py)
-- `refs` has 33 bytes for each component (tool state, plugin snapshot, execution state): its kind and the 32 bytes of
-- its ref. Kinds: `-` absent; `h` held, a blob of the shard that counts its holders; `p` private, in the session's own
-- `state`. The field is empty if all three are absent.
-- Other fields of a head: body, receipts, meta, ledger rows; and, if the session has them, `ttl` (its own, in ms),
-- `parent`, `owner`, `lease` (see lease.lua), pending inputs (see inputs.lua), `past` (see receipts.lua) and
-- `deletions` (see delete.lua). A head with `deleted` refuses late writes to a deleted session.

local FACTS = '^(%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%-?%d+) (%d+) ([01]) (%d+) (%d+) (%d+) (%d+) (%-?%d+)'
local SUM = ' (%d+) (%d+)$'

-- Decodes facts; nil if they are unreadable. Only facts that scripts calculate with become numbers, which saves time.
local function read_facts(text)
  local revision, epoch, length, live, jumps, dead, ids, bytes, leaf, usage, loose, deadline, hold, committed, users,
    first, high, low = string.match(text, FACTS .. SUM)
  if not revision or not is_int64(revision) or is_odd(epoch) or is_odd(length) or is_odd(live) or is_odd(jumps)
    or is_odd(dead) or is_odd(ids) or is_odd(bytes) or leaf ~= '-1' and is_odd(leaf) or is_odd(usage)
    or is_odd(deadline) or is_odd(hold) or is_odd(committed) or is_odd(users)
    or first ~= '-1' and first ~= '-2' and is_odd(first) or is_odd(high) or is_odd(low) then
    return nil
  end
  return {
    revision = revision, epoch = epoch, length = length + 0, live = live + 0, jumps = jumps + 0, dead = dead + 0,
    ids = ids + 0, bytes = bytes, leaf = leaf, usage = usage + 0, loose = loose, deadline = deadline + 0, hold = hold,
    committed = committed, users = users + 0, first = first + 0, private = 0, high = high, low = low,
  }
end

-- Encodes facts. On some machines %d takes at most 31 bits, so larger numbers use %.0f.
local function write_facts(f)
  return string.format('%s %s %d %d %d %d %d %.0f %d %d %s %.0f %s %s %d %d %.0f %.0f', f.revision, f.epoch, f.length,
    f.live, f.jumps, f.dead, f.ids, f.bytes, f.leaf, f.usage, f.loose, f.deadline, f.hold, f.committed, f.users,
    f.first, f.high, f.low)
end

-- Returns the facts of a new session. An epoch is never used twice, even if the session expires and begins again. A
-- read of a path takes two round trips, and would otherwise mix two logs.
local function new_facts(now)
  return {
    epoch = now, length = 0, live = 0, jumps = 0, dead = 0, ids = 0, bytes = 0, usage = 0, loose = '0', deadline = 0,
    hold = '0', users = 0, first = -1, private = 0, high = 0, low = 0,
  }
end

-- Returns 1 for the kind of a private component, 0 for the other two kinds, nil for any other byte.
local function is_private(kind)
  if kind == 112 then return 1 end
  return (kind == 104 or kind == 45) and 0 or nil
end

-- Counts the private components in `refs`; nil if `refs` is unreadable.
local function count_private(refs)
  if refs == '' then return 0 end
  if #refs ~= 99 then return nil end
  local tools, plugin = is_private(string.byte(refs, 1)), is_private(string.byte(refs, 34))
  local execution = is_private(string.byte(refs, 67))
  return tools and plugin and execution and tools + plugin + execution
end

-- Whether the session is another's than the owner for whom the caller acts (`access`; '': a trusted caller, who may
-- use every session). A session that has no `owner` is another's as soon as it has a head.
local function is_foreign(access, owner, has_head)
  return access ~= '' and (owner or has_head) and owner ~= access
end

-- Reads the head. Returns the facts (nil without a head); then, on a fault, the rest of a reply, else nil; then the
-- values of the head: facts as text, refs, receipts, ttl, parent, deleted, lease and owner, by name and by index from
-- 1. Absent refs, receipts and owner are '', other absent values false. From index 9 on follow the fields in `rows`
-- (nil: none). `next_owner` is the owner after a commit or a write of meta, which claims a session without an owner.
-- `others` are the keys that must not exist without a head. The check of `access` (see is_foreign) comes first, so that
-- a refused caller learns nothing else about the session.
local function open_head(head, others, access, rows)
  local stored
  if rows then
    stored = redis.pcall('HMGET', head, 'facts', 'refs', 'receipts', 'ttl', 'parent', 'deleted', 'lease', 'owner',
      unpack(rows))
  else
    stored = redis.pcall('HMGET', head, 'facts', 'refs', 'receipts', 'ttl', 'parent', 'deleted', 'lease', 'owner')
  end
  if stored.err then return nil, unusable('head', stored) end
  local text, refs, receipts, ttl = stored[1], stored[2], stored[3], stored[4]
  if is_foreign(access, stored[8], text) then return nil, {'foreign'} end
  stored.facts, stored.refs, stored.receipts, stored.ttl = text, refs or '', receipts or '', ttl
  stored.parent, stored.deleted, stored.lease = stored[5], stored[6], stored[7]
  stored.owner, stored.next_owner = stored[8] or '', stored[8] or access
  if ttl and not is_whole(ttl) then
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

-- Whether a session without a commit exists: it has a meta record or had a pending input.
local function is_begun(head)
  local stored = redis.call('HMGET', head, 'meta', 'inputs')
  return stored[1] or stored[2]
end

-- Returns the position in an entry of the nodes hash, and whether the node is a user's message; nil if the entry points
-- outside the log.
local function position_of(entry, facts)
  local digits, mark = string.match(entry, '^(%d+)(u?)$')
  local place = digits and not is_odd(digits) and tonumber(digits)
  if not place or place >= facts.length then return nil end
  return place, mark == 'u'
end

-- Compares the size of `key` with the count in the head, or in the record of a stream. Returns nil if they are equal,
-- else the rest of a reply: evicted (the key is missing) or corrupt (another type or size).
local function mismatch(family, command, key, expected)
  local size = redis.pcall(command, key)
  if size == expected then return nil end
  if type(size) == 'table' then return unusable(family, size) end
  if size == 0 then return {'evicted', family, 'is gone, expected ' .. expected .. ' entries'} end
  return {'corrupt', family, 'has ' .. size .. ' entries, expected ' .. expected}
end

-- Compares the size of every key of the session with the counts in its head. Returns nil or the rest of a reply.
local function torn(facts, log, nodes, jumps, dead, state)
  return mismatch('log', 'LLEN', log, facts.length) or mismatch('nodes', 'HLEN', nodes, facts.ids)
    or mismatch('jumps', 'LLEN', jumps, facts.jumps) or mismatch('dead', 'HLEN', dead, facts.dead)
    or mismatch('state', 'HLEN', state, facts.private)
end

-- The same for a commit. It skips keys that the commit neither reads nor writes and of which the head counts no entry:
-- tombstones, jumps if it adds no node, and state if it adds no component. `keys` are the session's other keys.
local function torn_for_commit(facts, keys, adds_nodes, adds_state)
  local log, nodes, jumps, dead, state = unpack(keys)
  return mismatch('log', 'LLEN', log, facts.length) or mismatch('nodes', 'HLEN', nodes, facts.ids)
    or (facts.jumps > 0 or adds_nodes) and mismatch('jumps', 'LLEN', jumps, facts.jumps)
    or facts.dead > 0 and mismatch('dead', 'HLEN', dead, facts.dead)
    or (facts.private > 0 or adds_state) and mismatch('state', 'HLEN', state, facts.private) or nil
end
