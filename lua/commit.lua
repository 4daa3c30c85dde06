-- commit: publish a session's next head revision with all that belongs to it; a refusal changes nothing.
--
-- KEYS   1 head     hash  facts, refs, body, receipts, meta, ledger rows
--        2 log      list  node records
--        3 nodes    hash  node id -> position
--        4 jumps    list  position:parent position
--        5 dead     hash  position -> node id
--        6 orphans  zset  blobs nobody holds -> ms
--        7 blobs    hash  c content, n holders, u promised until (ms): those the new head holds (acquired, then kept),
--                         then those it lets go
--
-- ARGV   1 session       str    session id, echoed
--        2 expected      int    revision this commit is built on; '' for any
--        3 builds_on     bytes  tag of the commit it is built on; '' for any
--        4 tag           bytes  16: which commit this is
--        5 meaning       bytes  16: what this commit means
--        6 before        bytes  refs the client believes the head holds
--        7 after         bytes  refs the new head holds
--        8 body          bytes  the client's part of the head
--        9 delta         str    unchanged, append or replace; faulty where the client found the nodes or the leaf wrong
--       10 checks        str    strict or lenient
--       11 leaf          str    '' none, @k the k-th node of this commit (from 0), =id a stored node
--       12 ttl           int    ms from now until the session expires; 0 for never
--       13 grace         int    ms a blob outlives its last holder
--       14 acquired      int    number of blobs newly held
--       15 kept          int    number of blobs held before and after
--       16 rows          int    number of usage rows
--       17 count         int    number of nodes
--       18 values        any    acquired + kept contents ('' where only named), then rows of (field, input, output,
--                               cached, reasoning), then count ids, count links, count records.
--                               A link is '' the node before it in this commit, - none, @k, or =id
--
-- Reply  committed <session> <revision>        the new head is published
--        replayed <session> <revision>         this commit was made before; nothing written
--        reused <session>                      its id was used for another meaning; nothing written
--        conflict <session> <revision>         the head is another; nothing written
--        refs <session> <refs>                 the head holds other refs than `before`; nothing written
--        missing <session> <index> ...         blobs named without content that are not stored; nothing written
--        faulty <session>                      delta is faulty and nothing else is wrong; nothing written
--        collision <session> <node>            that node's id is taken; nothing written
--        parent <session> <node>               that node's parent is not a live node; nothing written
--        leaf <session>                        the leaf does not resolve; nothing written
--        overflow <session> <row> <counter>    a ledger counter would leave 64 bits; nothing written
--        corrupt <session> <family> <reason>   stored bytes break a law; nothing written
--        evicted <session> <family> <reason>   a key of the session is gone; nothing written
--
-- Order  a retry is answered before revisions are compared: its own success moved the head; but after the keys are
--        counted, so that a torn session is never acknowledged. Every type, count and overflow is checked above WRITE,
--        because Redis does not undo what a script wrote before it failed.
-- Cost   one round trip; O(nodes + blobs + rows of this commit), whatever the session holds.

--@include int64
--@include refuse
--@include head

local head, log, nodes, jumps, dead, orphans = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local session, expected, builds_on, tag, meaning = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local before, after, body, delta, strict, leaf = ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10] == 'strict', ARGV[11]
local ttl, grace = tonumber(ARGV[12]), tonumber(ARGV[13])
local acquired, kept, rows, count = tonumber(ARGV[14]), tonumber(ARGV[15]), tonumber(ARGV[16]), tonumber(ARGV[17])
local blobs, values = 7, 18
local held = acquired + kept
local released = #KEYS - 6 - held
local usage_rows = values + held
local ids = usage_rows + 5 * rows
local links = ids + count
local records = links + count

local call = redis.call
local RECEIPT, RECEIPTS, CHUNK = 32, 32, 1000

-- CHECK

local facts, broken, refs, receipts = open_head(head, log, nodes, jumps, dead)
if broken then return refuse(session, broken) end
local actual = facts and facts.revision or '0'
if #receipts ~= RECEIPT * math.min(RECEIPTS, tonumber(actual)) then
  return refuse(session, {'corrupt', 'head', 'its receipts are unreadable'})
end

local wrong = facts and (mismatch('log', 'LLEN', log, facts.length) or mismatch('nodes', 'HLEN', nodes, facts.ids)
  or (facts.jumps > 0 or count > 0) and mismatch('jumps', 'LLEN', jumps, facts.jumps)
  or facts.dead > 0 and mismatch('dead', 'HLEN', dead, facts.dead))
if wrong then return refuse(session, wrong) end

local found = string.find(receipts, tag, 1, true)
while found and (found - 1) % RECEIPT ~= 0 do found = string.find(receipts, tag, found + 1, true) end
if found then
  if string.sub(receipts, found + 16, found + RECEIPT - 1) ~= meaning then return {'reused', session} end
  local later = (#receipts - found + 1) / RECEIPT - 1
  return {'replayed', session, add64(actual, string.format('%.0f', -later))}
end

if expected ~= '' and expected ~= actual then return {'conflict', session, actual} end
if builds_on ~= '' and builds_on ~= string.sub(receipts, -RECEIPT, -RECEIPT + 15) then
  return {'conflict', session, actual}
end
if delta == 'faulty' then return {'faulty', session} end
if before ~= refs then return {'refs', session, refs} end

local is_new = not facts -- though there may be meta, with a deadline of its own
local revision = add64(actual, '1')
if not revision then return refuse(session, {'corrupt', 'head', 'its revision cannot be counted further'}) end
if is_new then
  facts = {epoch = 0, length = 0, live = 0, jumps = 0, dead = 0, ids = 0, bytes = 0, usage = 0, loose = 0, deadline = 0}
end

local base = delta == 'replace' and 0 or facts.length
local was_empty = delta == 'replace' or (facts.live == 0 and facts.dead == 0)
local loose = delta ~= 'replace' and facts.loose or 0

-- The position of a stored node; 'named' for an id that is only named, 'dead' for a tombstone (and its position),
-- 'broken' for an entry that points nowhere, nil for an unknown id.
local function locate(id)
  local position = call('HGET', nodes, id)
  if not position then return nil end
  if position == '?' then return 'named' end
  local place = place_of(position, facts)
  if not place then return 'broken' end
  if facts.dead > 0 and call('HEXISTS', dead, position) == 1 then return 'dead', place end
  return place
end

local BROKEN_INDEX = {'corrupt', 'nodes', 'an entry points outside the log'}

local retaken = 0
if delta == 'append' then
  for from = 0, count - 1, CHUNK do
    local to = math.min(from + CHUNK, count) - 1
    local taken = call('HMGET', nodes, unpack(ARGV, ids + from, ids + to))
    for offset = 1, to - from + 1 do
      if taken[offset] and (strict or taken[offset] ~= '?') then return {'collision', session, from + offset - 1} end
      if taken[offset] then loose, retaken = 1, retaken + 1 end
    end
  end
end

local new_jumps, new_names, named = {}, {}, {}
for index = 0, count - 1 do
  local link, parent = ARGV[links + index]
  local mark = string.sub(link, 1, 1)
  if link == '' then
    parent = base + index - 1
  elseif mark == '@' then
    parent = base + tonumber(string.sub(link, 2))
    if parent >= base + index then parent, loose = -1, 1 end
  elseif mark == '-' then
    parent = -1
  else
    local id = string.sub(link, 2)
    local place, position = locate(id)
    if place == 'broken' then return refuse(session, BROKEN_INDEX) end
    if delta ~= 'replace' and type(place) == 'number' then
      parent = place
    elseif not strict then
      parent, loose = position or -1, 1
      if delta == 'replace' then parent = -1 end
    elseif (was_empty and index == 0) or (delta == 'replace' and (place == 'dead' or place == 'named')) then
      parent = -1
      if not named[id] and (delta == 'replace' or not place) then
        named[id] = true
        new_names[#new_names + 1] = id
        new_names[#new_names + 1] = '?'
      end
    else
      return {'parent', session, index}
    end
  end
  if parent ~= base + index - 1 then new_jumps[#new_jumps + 1] = (base + index) .. ':' .. parent end
end

local leaf_position = -1
if leaf == '' then
  local live = count + (delta == 'replace' and 0 or facts.live)
  if strict and live > 0 then return {'leaf', session} end
elseif string.sub(leaf, 1, 1) == '@' then
  leaf_position = base + tonumber(string.sub(leaf, 2))
else
  local place = nil
  if delta ~= 'replace' then place = locate(string.sub(leaf, 2)) end
  if place == 'broken' then return refuse(session, BROKEN_INDEX) end
  if type(place) == 'number' then
    leaf_position = place
  elseif strict then
    return {'leaf', session}
  else
    loose = 1
  end
end

local fields = {'facts', '', 'refs', after, 'body', body, 'receipts', ''}
local usage = facts.usage
for row = 0, rows - 1 do
  local at = usage_rows + 5 * row
  local field = ARGV[at]
  local sums = {ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]}
  local known, order = call('HGET', head, field), usage
  if known then
    local input, output, cached, reasoning
    order, input, output, cached, reasoning = string.match(known, '^(%d+) (%-?%d+) (%-?%d+) (%-?%d+) (%-?%d+)$')
    if not order then return refuse(session, {'corrupt', 'head', 'a ledger row is unreadable'}) end
    for counter, old in ipairs({input, output, cached, reasoning}) do
      sums[counter] = #old < 21 and add64(old, sums[counter]) or nil
      if not sums[counter] then return {'overflow', session, row, counter - 1} end
    end
  else
    usage = usage + 1
  end
  fields[#fields + 1] = field
  fields[#fields + 1] = order .. ' ' .. table.concat(sums, ' ')
end

-- Of a kept blob only its presence matters: this session is one of its holders already. Where it is the only one, the
-- blob takes the session's deadline, as one that nobody holds would.
local missing, holders, lifetimes, uploads = {'missing', session}, {}, {}, {}
local expires = ttl > 0 or facts.deadline > 0
local adopts = false
for index = 0, held + released - 1 do
  local key = KEYS[blobs + index]
  local is_kept = index >= acquired and index < held
  local size = is_kept and redis.pcall('HSTRLEN', key, 'c') or nil
  local counted = not is_kept and redis.pcall('HMGET', key, 'n', 'u') or {}
  local holding = counted[1]
  if type(size) == 'table' or counted.err then
    return refuse(session, unusable(string.sub(key, -69), type(size) == 'table' and size or counted))
  end
  if is_kept then
    holders[index] = size > 0
  elseif holding then
    if not string.match(holding, '^%d+$') then
      return refuse(session, {'corrupt', string.sub(key, -69), 'its number of holders is unreadable'})
    end
    holders[index] = tonumber(holding)
    uploads[index] = tonumber(counted[2] or '') or 0
    if index < held and call('HEXISTS', key, 'c') == 0 then holders[index] = false end
    adopts = adopts or (index < held and holders[index] == 0)
  end
  if index < held then
    if not holders[index] and ARGV[values + index] == '' then missing[#missing + 1] = index end
    if holders[index] and (expires or not is_kept) then
      lifetimes[index] = call('PTTL', key)
      if is_kept and lifetimes[index] == -1 and call('HGET', key, 'n') == '1' then holders[index] = 0 end
    end
  end
end
if #missing > 2 then return missing end

local pending = 0
if released > 0 or adopts then
  pending = redis.pcall('ZCARD', orphans)
  if type(pending) == 'table' then return refuse(session, unusable('orphans', pending)) end
end

local now = 0
if released > 0 or ttl > 0 or is_new then
  local clock = call('TIME')
  now = clock[1] * 1000 + math.floor(clock[2] / 1000)
end
local deadline = ttl > 0 and now + ttl or 0

-- Epochs never come round again, not even when the session expires and starts anew: a path is read in two trips.
if is_new then facts.epoch = now end
local replaced = delta == 'replace' and facts.length > 0
local had_deadline = facts.deadline > 0 or is_new
if delta == 'replace' then
  facts.epoch, facts.length, facts.live, facts.jumps = facts.epoch + 1, 0, 0, 0
  facts.dead, facts.ids, facts.bytes = 0, 0, 0
end
facts.revision, facts.usage, facts.loose, facts.leaf, facts.deadline = revision, usage, loose, leaf_position, deadline
facts.length, facts.live, facts.jumps = facts.length + count, facts.live + count, facts.jumps + #new_jumps
facts.ids = facts.ids + count - retaken + #new_names / 2
for index = 0, count - 1 do facts.bytes = facts.bytes + #ARGV[records + index] end
fields[2] = write_facts(facts)
fields[8] = string.sub(receipts, -RECEIPT * (RECEIPTS - 1)) .. tag .. meaning

-- WRITE

-- HSET comes first: a full server refuses it, and after a script's first write it refuses nothing more.
for from = 1, #fields, CHUNK do call('HSET', head, unpack(fields, from, math.min(from + CHUNK - 1, #fields))) end
if replaced then call('UNLINK', log, nodes, jumps, dead) end
for from = 0, count - 1, CHUNK do
  local to = math.min(from + CHUNK, count) - 1
  call('RPUSH', log, unpack(ARGV, records + from, records + to))
  local places = {}
  for index = from, to do
    places[#places + 1] = ARGV[ids + index]
    places[#places + 1] = base + index
  end
  call('HSET', nodes, unpack(places))
end
for from = 1, #new_names, CHUNK do
  call('HSET', nodes, unpack(new_names, from, math.min(from + CHUNK - 1, #new_names)))
end
for from = 1, #new_jumps, CHUNK do
  call('RPUSH', jumps, unpack(new_jumps, from, math.min(from + CHUNK - 1, #new_jumps)))
end

for index = 0, held - 1 do
  local key, holding, lifetime = KEYS[blobs + index], holders[index], lifetimes[index]
  if not holding then
    call('HSET', key, 'c', ARGV[values + index], 'n', 1)
    if deadline > 0 then call('PEXPIREAT', key, deadline) end
  else
    if index < acquired then
      call('HSET', key, 'n', holding + 1)
      if holding == 0 then call('ZREM', orphans, string.sub(key, -64)) end
    end
    if lifetime and deadline == 0 then
      if lifetime ~= -1 then call('PERSIST', key) end
    elseif lifetime and (lifetime == -1 and holding == 0 or lifetime ~= -1 and lifetime < ttl) then
      call('PEXPIREAT', key, deadline)
    end
  end
end

local orphaned = {}
for index = held, held + released - 1 do
  local key, holding = KEYS[blobs + index], holders[index]
  if holding then
    call('HSET', key, 'n', math.max(holding - 1, 0))
    if holding <= 1 then
      local promised = uploads[index] > now
      call('PEXPIREAT', key, math.max(now + grace, uploads[index]))
      orphaned[#orphaned + 1] = promised and uploads[index] or now
      orphaned[#orphaned + 1] = string.sub(key, -64)
    end
  end
end
if #orphaned > 0 then
  call('ZADD', orphans, unpack(orphaned))
  -- Now and then: entries whose blob is past its grace point at nothing, and the list itself must not stay for ever.
  -- Should it expire early, its blobs still do so by themselves.
  local step = 32
  if pending == 0 or math.floor(pending / step) ~= math.floor((pending + #orphaned / 2) / step) then
    call('ZREMRANGEBYSCORE', orphans, '-inf', now - grace - 1)
    if call('PTTL', orphans) < 2 * grace then call('PEXPIRE', orphans, 2 * grace) end
  end
end

if deadline > 0 then
  for index = 1, 5 do call('PEXPIREAT', KEYS[index], deadline) end
elseif had_deadline then
  for index = 1, 5 do call('PERSIST', KEYS[index]) end
end
return {'committed', session, revision}
