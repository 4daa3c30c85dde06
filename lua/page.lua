-- page: return a part of a path, with the head and the private components; reads only.
--
-- KEYS   1 head     hash  facts, refs, body, receipts, ledger rows
--        2 log      list  node records
--        3 nodes    hash  node id -> position
--        4 jumps    list  position:parent position
--        5 dead     hash  position -> node id
--        6 state    hash  private components, p plugin snapshot, x execution state
--
-- ARGV   1 session  str   session id, echoed
--        2 leaf     str   id of the node at which the path ends; '' for the head's leaf
--        3 before   str   id of the node of the path that follows the page; '' for the end of the path
--        4 limit    int   maximum number of nodes of the page
--        5 batch    int   maximum number of records to return
--        6 work     int   maximum number of jumps, of tombstones and of skipped records to read
--        7 access   str   owner for whom the caller acts; '' for a trusted caller
--
-- Reply  page <session> <head> <state> <dead> <jumps> <earlier> <spans> <records> <position> <record>
--              the head's fields and values; the private components; the positions of all tombstones; the jumps that
--              were read; 1 if the path has earlier nodes, else 0; first and last position of each span, root first; a
--              list of records for each span, or none if there are more than `batch`; the position and the record of
--              `before`, or -1 and ''
--        off <session>                         `before` is unknown, tombstoned or not on the path
--        far <session>                         more than `work`, or only a larger read determines the page
--        absent <session>                      the session has no head
--        foreign <session>                     the session is another owner's than `access`
--        corrupt <session> <family> <reason>   stored data violates an invariant
--        evicted <session> <family> <reason>   a key of the session is gone
--
-- Order  the script compares the sizes of the keys first, so that it never reports a session with missing parts as a
--        page. It follows the path from the leaf to the page by jumps, never node by node. A record that `vacuum` freed
--        also ends a path, but only the record itself shows that. So records are skipped unread only while the log has
--        no freed record.
-- Cost   one round trip, about ten commands; O(records and jumps read), plus the steps over list chunks to each span.

--@include refuse
--@include numbers
--@include head

local head, log, nodes, jumps, dead, state = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local session, leaf, before = ARGV[1], ARGV[2], ARGV[3]
local limit, batch, work = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local access = ARGV[7]

-- CHECK

local now, wrong = open_head(head, {log, nodes, jumps, dead, state}, access)
wrong = wrong or now and torn(now, log, nodes, jumps, dead, state)
if wrong then return refuse(session, wrong) end
if not now then return {'absent', session} end
if now.loose == '1' or now.dead > work then return {'far', session} end

local has_freed = now.live + now.dead < now.length
local tombs, hidden = now.dead > 0 and redis.call('HKEYS', dead) or {}, {}
for index, place in ipairs(tombs) do
  hidden[index] = is_whole(place) and tonumber(place)
  if not hidden[index] or hidden[index] >= now.length then
    return refuse(session, {'corrupt', 'dead', 'a field is not a position'})
  end
end
table.sort(hidden, function(one, other) return one > other end)

-- Returns the position of a node; -1 if no node has the id; nil if its entry points outside the log.
local function find(id)
  local entry = redis.call('HGET', nodes, id)
  if not entry or entry == '?' then return -1 end
  return (position_of(entry, now))
end

-- Whether a node is tombstoned or freed.
local function is_gone(position)
  return now.dead > 0 and redis.call('HEXISTS', dead, position) == 1
    or has_freed and redis.call('LINDEX', log, position) == ''
end

-- The jumps are read in chunks from the end of the list. `low` is the index of the first that was read.
local chunk, low, index = {}, now.jumps, now.jumps - 1

-- Returns the last jump up to a position: its own position and that of its parent, or 0 and -1 if there is none. The
-- positions asked for descend. Returns nil and the rest of a reply if it cannot.
local function jump_up_to(position)
  while index >= 0 do
    if index < low then
      if now.jumps - low >= work then return nil, {'far'} end
      low = math.max(0, index - 99)
      chunk = redis.call('LRANGE', jumps, low, index)
    end
    local start, parent = read_jump(chunk[index - low + 1])
    if not start or parent >= start then return nil, {'corrupt', 'jumps', 'an element is unreadable'} end
    if start <= position then return start, parent end
    index = index - 1
  end
  return 0, -1
end

-- Returns the piece of the path that ends at a position: where it starts, and the position of the node before it (-1:
-- none). A piece has neither jumps nor tombstones in it. Returns nil and the rest of a reply if it cannot.
local tomb = 1
local function piece_up_to(position)
  local start, parent = jump_up_to(position)
  if not start then return nil, parent end
  while hidden[tomb] and hidden[tomb] > position do tomb = tomb + 1 end
  if hidden[tomb] and hidden[tomb] >= start then return hidden[tomb] + 1, -1 end
  return start, parent
end

-- Reads the records that a page skips. Returns nil if all are live, else the rest of a reply.
local skipped = 0
local function skip(from, to)
  if not has_freed then return nil end
  skipped = skipped + to - from + 1
  if skipped > work then return {'far'} end
  for _, record in ipairs(redis.call('LRANGE', log, from, to)) do
    if record == '' then return {'off'} end
  end
  return nil
end

local at, following = tonumber(now.leaf), -1
if leaf ~= '' then at = find(leaf) end
if before ~= '' then following = find(before) end
if not (at and following) then return refuse(session, {'corrupt', 'nodes', 'an entry points outside the log'}) end
if at >= now.length then return refuse(session, {'corrupt', 'head', 'its leaf is outside the log'}) end
if leaf == '' and at >= 0 and is_gone(at) then return {'far', session} end

if before ~= '' then
  local start, parent
  repeat
    if following < 0 or at < following then return {'off', session} end
    start, parent = piece_up_to(at)
    local reason = start and skip(math.max(start, following), at) or not start and parent
    if reason then return refuse(session, reason) end
    at = start < following and following - 1 or parent
  until start <= following
end

local count, earlier, pieces = 0, -1, {}
while at >= 0 and count < limit do
  local start, parent = piece_up_to(at)
  if not start then return refuse(session, parent) end
  local from = math.max(start, at - (limit - count) + 1)
  if from <= at then pieces[#pieces + 1] = {from, at} end
  count = count + at - from + 1
  earlier = from > start and from - 1 or parent
  at = parent
end

-- The record of `before` usually follows the last one of the page. One command then reads both, because the server
-- takes time to find a position in a long list.
local spans, records, record = {}, {}, ''
for piece = #pieces, 1, -1 do
  local first, last = unpack(pieces[piece])
  spans[#spans + 1] = first
  spans[#spans + 1] = last
  if count <= batch then
    local is_next = last + 1 == following
    local part = redis.call('LRANGE', log, first, is_next and following or last)
    if is_next then record = table.remove(part) end
    records[#records + 1] = part
  end
end
local head_now, private = redis.call('HGETALL', head), redis.call('HGETALL', state)
local jumps_read = redis.call('LRANGE', jumps, low, -1)
local is_partial = earlier >= 0 and not is_gone(earlier) and 1 or 0
if before ~= '' and record == '' then record = redis.call('LINDEX', log, following) end
return {'page', session, head_now, private, tombs, jumps_read, is_partial, spans, records, following, record}
