-- commit: publish a session's next head revision with all that belongs to it; a refusal changes nothing.
--
-- KEYS   1 head      hash  facts, refs, body, receipts, meta, ledger rows
--        2 log       list  node records
--        3 nodes     hash  node id -> position, and `u` behind that of a user's message
--        4 jumps     list  position:parent position
--        5 dead      hash  position -> node id
--        6 sessions  zset  catalogue entry -> last commit (ms)
--        7 expiries  zset  catalogue entry -> until when it stays (ms)
--        8 orphans   zset  blobs nobody holds -> ms
--        9 blobs     hash  c content, u promised until (ms), holders until each time: those the new head holds
--                          (acquired, then kept), then those it lets go
--
-- ARGV   1 session       str    session id, echoed
--        2 expected      int    revision this commit is built on; '' for any
--        3 builds_on     bytes  tag of the commit it is built on; '' for any
--        4 tag           bytes  8: which commit this is
--        5 meaning       bytes  8: what this commit means
--        6 before        bytes  refs the client believes the head holds
--        7 after         bytes  refs the new head holds
--        8 body          bytes  the client's part of the head
--        9 delta         bytes  unchanged, append or replace; faulty where the client found the nodes or the leaf
--                               wrong; extend <epoch> <nodes> <bytes> <drops> <less> <mark>: a replacement that keeps
--                               the first of the stored nodes and sends what comes behind them, with which log that
--                               is, how many records, how long they are together, how many of the last it drops, how
--                               long those are, how the last one ends
--       10 checks        str    strict or lenient
--       11 leaf          str    '' none, @k the k-th node of this commit (from 0), =id a stored node
--       12 default_ttl   int    ms from now until a session without a ttl of its own expires; 0 for never
--       13 own_ttl       int    ms, the session's own from now on; 0 for never; '' as it is
--       14 grace         int    ms a blob outlives its last holder
--       15 origin        str    '' an ordinary commit; new: the session must not be there; or, so too, a session that
--                               moves here: its revision before this commit and the time of this commit (ms)
--       16 history       bytes  the receipts of a session that moves here, up to its revision before
--       17 meta          bytes  the meta record of a new session; '' for none
--       18 parent        str    the parent it names; '' for none
--       19 acquired      int    number of blobs newly held
--       20 kept          int    number of blobs held before and after
--       21 rows          int    number of usage rows
--       22 count         int    number of nodes
--       23 users         str    for each node `u` where it is a user's message, else -
--       24 sharded       int    1: the server is a cluster, whose channels belong to a slot as keys do
--       25 lease         str    generation, token and owner of the lease it is made under, a blank between; '' for none
--       26 releases      str    likewise, of a lease that ends with it
--       27 values        any    acquired + kept contents ('' where only named), then rows of (field, input, output,
--                               cached, reasoning), then count ids, count links, count records, then the ids of the
--                               stored nodes that extend drops.
--                               A link is '' the node before it in this commit, - none, @k, or =id
--
-- Reply  committed <session> <revision>        the new head is published
--        lost <session> <why> <revision>       its lease is expired, taken, released or gone; the revision that an
--                                              earlier attempt at this commit made, else ''; nothing written
--        replayed <session> <revision>         this commit was made before; nothing written
--        reused <session>                      its id was used for another meaning; nothing written
--        conflict <session> <revision>         the head is another; nothing written
--        deleted <session>                     the session was deleted; nothing written
--        exists <session> <revision>           it was to be new and is not; nothing written
--        refs <session> <refs>                 the head holds other refs than `before`; nothing written
--        missing <session> <index> ...         blobs named without content that are not stored; nothing written
--        unlike <session>                      it would extend another log than the one that is stored; nothing written
--        faulty <session>                      delta is faulty and nothing else is wrong; nothing written
--        collision <session> <node>            that node's id is taken; nothing written
--        parent <session> <node>               that node's parent is not a live node; nothing written
--        leaf <session>                        the leaf does not resolve; nothing written
--        overflow <session> <row> <counter>    a ledger counter would leave 64 bits; nothing written
--        corrupt <session> <family> <reason>   stored bytes break a law; nothing written
--        evicted <session> <family> <reason>   a key of the session is gone; nothing written
--
-- Order  a lease is looked at before anything else of the commit, a retry's receipt included: a holder that lost it is
--        told so. A lease to release that is another's by now stays, and hinders nothing.
--        A retry is answered before revisions are compared: its own success moved the head; but after the keys are
--        counted, so that a torn session is never acknowledged. Every type, count and overflow is checked above WRITE,
--        because Redis does not undo what a script wrote before it failed.
-- Cost   one round trip; O(nodes + blobs + rows of this commit), whatever the session holds.

--@include int64
--@include refuse
--@include head
--@include clock
--@include lease
--@include holders
--@include catalogue

local KEYS, ARGV = KEYS, ARGV -- a local is found faster than a global
local head, log, nodes, jumps, dead = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local sessions, expiries, orphans = KEYS[6], KEYS[7], KEYS[8]
local session, expected, builds_on, tag, meaning = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local before, after, body, delta, strict, leaf = ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10] == 'strict', ARGV[11]
local default_ttl, own_ttl, grace = tonumber(ARGV[12]), ARGV[13], tonumber(ARGV[14])
local origin, history, meta, parent = ARGV[15], ARGV[16], ARGV[17], ARGV[18]
local acquired, kept, rows, count = tonumber(ARGV[19]), tonumber(ARGV[20]), tonumber(ARGV[21]), tonumber(ARGV[22])
local users, sharded, lease, releases = ARGV[23], ARGV[24] == '1', ARGV[25], ARGV[26]
local blobs, values = 9, 27
local held = acquired + kept
local released = #KEYS - 8 - held
local usage_rows = values + held
local ids = usage_rows + 5 * rows
local links = ids + count
local records = links + count
local gone = records + count

local call = redis.call
local RECEIPT, RECEIPTS, CHUNK = 16, 32, 1000

-- CHECK

local facts, broken, stored = open_head(head, log, nodes, jumps, dead)
if broken then return refuse(session, broken) end
if stored.deleted then return {'deleted', session} end
local refs, receipts = stored.refs, stored.receipts
local actual = facts and facts.revision or '0'
if #receipts ~= RECEIPT * math.min(RECEIPTS, tonumber(actual)) then
  return refuse(session, {'corrupt', 'head', 'its receipts are unreadable'})
end

local found = string.find(receipts, tag, 1, true)
while found and (found - 1) % RECEIPT ~= 0 do found = string.find(receipts, tag, found + 1, true) end
local made = found and add64(actual, string.format('%.0f', 1 - (#receipts - found + 1) / RECEIPT))

local now = milliseconds()
local held_lease = stored.lease and read_lease(stored.lease)
if held_lease == nil then return refuse(session, {'corrupt', 'head', 'its lease is unreadable'}) end
if lease ~= '' then
  local generation, token, owner = string.match(lease, '^(%d+) (%S+) (.*)$')
  local why = lost(held_lease, token, owner, now) or held_lease.generation ~= generation and 'taken'
  if why then return {'lost', session, why, made or ''} end
end

local wrong = facts and (mismatch('log', 'LLEN', log, facts.length) or mismatch('nodes', 'HLEN', nodes, facts.ids)
  or (facts.jumps > 0 or count > 0) and mismatch('jumps', 'LLEN', jumps, facts.jumps)
  or facts.dead > 0 and mismatch('dead', 'HLEN', dead, facts.dead))
if wrong then return refuse(session, wrong) end

if found then
  if string.sub(receipts, found + RECEIPT / 2, found + RECEIPT - 1) ~= meaning then return {'reused', session} end
  return {'replayed', session, made}
end

if origin ~= '' and (facts or call('HEXISTS', head, 'meta') == 1) then return {'exists', session, actual} end
if expected ~= '' and expected ~= actual then return {'conflict', session, actual} end
if builds_on ~= '' and builds_on ~= string.sub(receipts, -RECEIPT, -RECEIPT / 2 - 1) then
  return {'conflict', session, actual}
end
if delta == 'faulty' then return {'faulty', session} end
if before ~= refs then return {'refs', session, refs} end

-- A tombstone moves no head: only here is it known that the log still is what the client keeps of it, and shows it all.
local drops, less = 0, 0
local epoch, all, bytes, last, size, ending = string.match(delta, '^extend (%d+) (%d+) (%d+) (%d+) (%d+) (.*)$')
if epoch then
  local same = facts and facts.epoch == epoch and facts.length == tonumber(all) and facts.live == facts.length
    and facts.ids == facts.length and facts.loose == '0' and facts.bytes == bytes
    and string.sub(call('LINDEX', log, -1), -4) == ending
  if not same then return {'unlike', session} end
  delta, drops, less = 'append', tonumber(last), tonumber(size)
end

local is_new = not facts -- though there may be meta, with a deadline of its own
local committed, moves = string.format('%.0f', now), false
if origin ~= '' and origin ~= 'new' then
  actual, committed = string.match(origin, '^(%d+) (%d+)$')
  receipts, moves = history, true
end
local revision = add64(actual, '1')
if not revision then return refuse(session, {'corrupt', 'head', 'its revision cannot be counted further'}) end
if is_new then
  -- Epochs never come round again, not even when the session expires and starts anew: a path is read in two trips.
  facts = {
    epoch = now, length = 0, live = 0, jumps = 0, dead = 0, ids = 0, bytes = 0, usage = 0, loose = '0', deadline = 0,
    hold = '0', users = 0, first = -1,
  }
end

local base = delta == 'replace' and 0 or facts.length - drops
local was_empty = delta == 'replace' or (facts.live == 0 and facts.dead == 0)
local loose = delta ~= 'replace' and facts.loose or '0'

-- The position of a stored node; 'named' for an id that is only named, 'dead' for a tombstone (and its position),
-- 'broken' for an entry that points nowhere, nil for an unknown id and for a node that this commit drops.
local function locate(id)
  local entry = call('HGET', nodes, id)
  if not entry then return nil end
  if entry == '?' then return 'named' end
  local place = place_of(entry, facts)
  if not place then return 'broken' end
  if drops > 0 and place >= base then return nil end
  if facts.dead > 0 and call('HEXISTS', dead, place) == 1 then return 'dead', place end
  return place
end

local BROKEN_INDEX = {'corrupt', 'nodes', 'an entry points outside the log'}

local dropped_users, kept_jumps = 0, facts.jumps
for from = 0, drops - 1, CHUNK do
  local to = math.min(from + CHUNK, drops) - 1
  for offset, entry in ipairs(call('HMGET', nodes, unpack(ARGV, gone + from, gone + to))) do
    local place, is_user = place_of(entry or '', facts)
    if place ~= base + from + offset - 1 then return {'unlike', session} end
    if is_user then dropped_users = dropped_users + 1 end
  end
end
while drops > 0 and kept_jumps > 0 do
  local from = math.max(kept_jumps - CHUNK, 0)
  local part = call('LRANGE', jumps, from, kept_jumps - 1)
  kept_jumps = from
  for index = #part, 1, -1 do
    local place = tonumber(string.match(part[index], '^(%d+):'))
    if not place then return refuse(session, {'corrupt', 'jumps', 'an entry is unreadable'}) end
    if place < base then kept_jumps = from + index break end
  end
  if kept_jumps > from then break end
end

local retaken = 0
if delta == 'append' then
  for from = 0, count - 1, CHUNK do
    local to = math.min(from + CHUNK, count) - 1
    local taken = call('HMGET', nodes, unpack(ARGV, ids + from, ids + to))
    for offset = 1, to - from + 1 do
      local entry = taken[offset]
      if entry and drops > 0 then
        local place = place_of(entry, facts)
        if place and place >= base then entry = false end -- dropped by this commit
      end
      if entry and (strict or entry ~= '?') then return {'collision', session, from + offset - 1} end
      if entry then loose, retaken = 1, retaken + 1 end
    end
  end
end

local new_jumps, new_names, named = {}, {}, {}
for index = 0, count - 1 do
  local link, above = ARGV[links + index]
  local mark = string.sub(link, 1, 1)
  if link == '' then
    above = base + index - 1
  elseif mark == '@' then
    above = base + tonumber(string.sub(link, 2))
    if above >= base + index then above, loose = -1, 1 end
  elseif mark == '-' then
    above = -1
  else
    local id = string.sub(link, 2)
    local place, position = locate(id)
    if place == 'broken' then return refuse(session, BROKEN_INDEX) end
    if delta ~= 'replace' and type(place) == 'number' then
      above = place
    elseif not strict then
      above, loose = position or -1, 1
      if delta == 'replace' then above = -1 end
    elseif (was_empty and (index == 0 or moves)) or (delta == 'replace' and (place == 'dead' or place == 'named')) then
      above = -1
      if not named[id] and (delta == 'replace' or not place) then
        named[id] = true
        new_names[#new_names + 1] = id
        new_names[#new_names + 1] = '?'
      end
    else
      return {'parent', session, index}
    end
  end
  if above ~= base + index - 1 then new_jumps[#new_jumps + 1] = (base + index) .. ':' .. above end
end

local leaf_position = -1
if leaf == '' then
  local live = count + (delta == 'replace' and 0 or facts.live - drops)
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

local usage, fields = facts.usage, {}
for row = 0, rows - 1 do
  local at = usage_rows + 5 * row
  local field = ARGV[at]
  local known = call('HGET', head, field)
  local order, input, output, cached, reasoning =
    string.match(known or usage .. ' 0 0 0 0', '^(%d+) (%-?%d+) (%-?%d+) (%-?%d+) (%-?%d+)$')
  if not order then return refuse(session, {'corrupt', 'head', 'a ledger row is unreadable'}) end
  if not known then usage = usage + 1 end
  local a, b, c, d = ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local sums
  if #input < 10 and #output < 10 and #cached < 10 and #reasoning < 10
    and #a < 10 and #b < 10 and #c < 10 and #d < 10 then -- what add64 would say, four at once
    sums = string.format('%d %d %d %d', input + a, output + b, cached + c, reasoning + d)
  else
    sums = {}
    for counter, old in ipairs({input, output, cached, reasoning}) do
      sums[counter] = #old < 21 and add64(old, ARGV[at + counter]) or nil
      if not sums[counter] then return {'overflow', session, row, counter - 1} end
    end
    sums = table.concat(sums, ' ')
  end
  fields[#fields + 1] = field
  fields[#fields + 1] = order .. ' ' .. sums
end

local ttl = own_ttl ~= '' and own_ttl or stored.ttl
ttl = ttl and tonumber(ttl) or default_ttl
local frees = held_lease and releases == held_lease.generation .. ' ' .. held_lease.token .. ' ' .. held_lease.owner
local deadline = outlasting(ttl > 0 and now + ttl or 0, not frees and held_lease)
local had, hold = facts.hold, hold_of(deadline, grace)
local slides = had ~= hold

-- What each blob counts: acquired, the holders until `hold`; released, those until `had`, and the promise; kept, these
-- and the holders until `hold`. False for one that is not stored.
local missing, numbers, writes_orphans = {'missing', session}, {}, released > 0
for index = 0, acquired - 1 do
  local key, counts = KEYS[blobs + index], false
  local there, failed = is_stored(key)
  if there then
    counts, failed = numbers_of(key, hold, 'u')
    writes_orphans = true
  elseif ARGV[values + index] == '' then
    missing[#missing + 1] = index
  end
  if failed then return refuse(session, failed) end
  numbers[index] = counts
end
for index = acquired, held - 1 do
  local key = KEYS[blobs + index]
  local counts, failed = numbers_of(key, had, 'u', hold)
  if counts and counts[1] == 0 then
    local there
    there, failed = is_stored(key)
    if not there then counts = false end
    if not there and ARGV[values + index] == '' then missing[#missing + 1] = index end
  end
  if failed then return refuse(session, failed) end
  numbers[index] = counts
end
for index = held, held + released - 1 do
  local counts, failed = numbers_of(KEYS[blobs + index], had, 'u')
  if failed then return refuse(session, failed) end
  numbers[index] = counts
end
if #missing > 2 then return missing end

local entry = entry_of(session, parent ~= '' and parent or stored.parent)
local listed, failed = is_listed(sessions, entry)
local moves_entry = slides or is_new or not listed
if not failed and moves_entry then failed = unusable_catalogue(sessions, expiries) end
if failed then return refuse(session, failed) end
local waiting = writes_orphans and redis.pcall('ZCARD', orphans)
if type(waiting) == 'table' then return refuse(session, unusable('orphans', waiting)) end

local replaced = delta == 'replace' and facts.length > 0
local had_deadline = facts.deadline > 0 or is_new
if drops > 0 or delta == 'replace' and not is_new then -- positions come round again with other nodes: another log
  facts.epoch = math.max(facts.epoch + 1, now)
end
if delta == 'replace' then
  facts.length, facts.live, facts.jumps, facts.dead, facts.ids, facts.bytes = 0, 0, 0, 0, 0, 0
  facts.users, facts.first = 0, -1
end
if drops > 0 then
  facts.length, facts.live, facts.ids, facts.jumps, facts.bytes = base, base, base, kept_jumps, facts.bytes - less
  facts.users = facts.users - dropped_users
  if facts.first >= base then facts.first = -1 end
end
facts.revision, facts.usage, facts.loose, facts.leaf = revision, usage, loose, leaf_position
facts.deadline, facts.hold, facts.committed = deadline, hold, committed
facts.length, facts.live, facts.jumps = facts.length + count, facts.live + count, facts.jumps + #new_jumps
facts.ids = facts.ids + count - retaken + #new_names / 2
for index = 0, count - 1 do
  facts.bytes = facts.bytes + #ARGV[records + index]
  if string.byte(users, index + 1) == 117 then
    facts.users = facts.users + 1
    if facts.first == -1 then facts.first = base + index end
  end
end
receipts = string.sub(receipts, -RECEIPT * (RECEIPTS - 1)) .. tag .. meaning
if own_ttl ~= '' then fields[#fields + 1], fields[#fields + 2] = 'ttl', own_ttl end
if meta ~= '' then fields[#fields + 1], fields[#fields + 2] = 'meta', meta end
if parent ~= '' then fields[#fields + 1], fields[#fields + 2] = 'parent', parent end
if frees then fields[#fields + 1], fields[#fields + 2] = 'lease', write_lease(held_lease.generation, 0, '', '') end

-- WRITE

--@include holding
--@include cataloguing
--@include announcing

if drops > 0 then
  -- What changes nothing, but fails on a full server, and for an account that may not LTRIM (older ones of ours).
  call('HSET', head, 'refs', refs)
  call('LTRIM', log, 0, -1)
end
-- HSET comes first: a full server refuses it, and after a script's first write it refuses nothing more.
call('HSET', head, 'facts', write_facts(facts), 'refs', after, 'body', body, 'receipts', receipts,
  unpack(fields, 1, math.min(CHUNK, #fields)))
for from = CHUNK + 1, #fields, CHUNK do
  call('HSET', head, unpack(fields, from, math.min(from + CHUNK - 1, #fields)))
end
if replaced then call('UNLINK', log, nodes, jumps, dead) end
if drops > 0 then
  call('LTRIM', log, 0, base - 1)
  if kept_jumps == 0 then call('UNLINK', jumps) else call('LTRIM', jumps, 0, kept_jumps - 1) end
end
for from = 0, drops - 1, CHUNK do
  call('HDEL', nodes, unpack(ARGV, gone + from, gone + math.min(from + CHUNK, drops) - 1))
end
for from = 0, count - 1, CHUNK do
  local to = math.min(from + CHUNK, count) - 1
  call('RPUSH', log, unpack(ARGV, records + from, records + to))
  local places = {}
  for index = from, to do
    places[#places + 1] = ARGV[ids + index]
    places[#places + 1] = string.byte(users, index + 1) == 117 and base + index .. 'u' or base + index
  end
  call('HSET', nodes, unpack(places))
end
for from = 1, #new_names, CHUNK do
  call('HSET', nodes, unpack(new_names, from, math.min(from + CHUNK - 1, #new_names)))
end
for from = 1, #new_jumps, CHUNK do
  call('RPUSH', jumps, unpack(new_jumps, from, math.min(from + CHUNK - 1, #new_jumps)))
end

local free = {}
for index = 0, held - 1 do
  local key, counts = KEYS[blobs + index], numbers[index]
  if not counts then
    call('HSET', key, 'c', ARGV[values + index], hold, '1')
    if deadline > 0 then call('PEXPIREAT', key, hold) end
  elseif index < acquired then
    add_holder(key, hold, counts[1], now)
    call('ZREM', orphans, string.sub(key, -64))
  elseif slides or counts[1] == 0 then
    add_holder(key, hold, counts[3], now)
    if counts[1] > 0 then drop_holder(key, had, counts[1], counts[2], grace, now, free) end
  end
end
for index = held, held + released - 1 do
  local counts = numbers[index]
  if counts[1] > 0 then drop_holder(KEYS[blobs + index], had, counts[1], counts[2], grace, now, free) end
end

list_orphans(orphans, free, waiting, grace, now)

call('ZADD', sessions, committed, entry)
if moves_entry then keep_entry(sessions, expiries, entry, hold, now) end
if deadline > 0 then
  call('PEXPIREAT', head, deadline)
  if facts.length > 0 then call('PEXPIREAT', log, deadline) end
  if facts.ids > 0 then call('PEXPIREAT', nodes, deadline) end
  if facts.jumps > 0 then call('PEXPIREAT', jumps, deadline) end
  if facts.dead > 0 then call('PEXPIREAT', dead, deadline) end
elseif had_deadline then
  for index = 1, 5 do call('PERSIST', KEYS[index]) end
end
announce(sharded, head, revision .. ' ' .. deadline .. ' ' .. tag)
return {'committed', session, revision, facts.epoch + 0}
