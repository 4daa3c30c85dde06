-- tombstone: hide nodes from every read; a refusal hides none of them.
--
-- KEYS   1 head     hash  facts are rewritten
--        2 log      list  node records, counted
--        3 nodes    hash  node id -> position, and `u` behind that of a user's message
--        4 jumps    list  position:parent position, counted
--        5 dead     hash  position -> node id
--        6 state    hash  private components, counted
--
-- ARGV   1 session  str   session id, echoed
--        2 access   str   owner for whom the caller acts; '' for a trusted caller
--        3 ids      str   node ids, up to the end
--
-- Reply  tombstoned <session> <count>          the number of nodes that are newly hidden
--        foreign <session>                     the session is another owner's than `access`; nothing written
--        corrupt <session> <family> <reason>   stored data violates an invariant; nothing written
--        evicted <session> <family> <reason>   a key of the session is gone; nothing written
--
-- Order  the script skips ids that are unknown, hidden or only named as a parent, so it is idempotent.
-- Cost   one round trip, O(ids).

--@include refuse
--@include numbers
--@include head

local head, log, nodes, jumps, dead, state = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local session, access, ids = ARGV[1], ARGV[2], 3

-- CHECK

local facts, wrong = open_head(head, {log, nodes, jumps, dead, state}, access)
wrong = wrong or facts and torn(facts, log, nodes, jumps, dead, state)
if wrong then return refuse(session, wrong) end
if not facts then return {'tombstoned', session, 0} end

local fields, seen = {}, {}
for index = ids, #ARGV do
  local entry = redis.call('HGET', nodes, ARGV[index])
  if entry and entry ~= '?' and not seen[entry] then
    seen[entry] = true
    local position, is_user = position_of(entry, facts)
    if not position then return refuse(session, {'corrupt', 'nodes', 'an entry points outside the log'}) end
    if redis.call('HEXISTS', dead, position) == 0 then
      fields[#fields + 1] = position
      fields[#fields + 1] = ARGV[index]
      if is_user then facts.users = facts.users - 1 end
      if position == facts.first then facts.first = -2 end
    end
  end
end
local count = #fields / 2
if count == 0 then return {'tombstoned', session, 0} end
facts.live, facts.dead = facts.live - count, facts.dead + count
if facts.users == 0 then facts.first = -1 end

-- WRITE

redis.call('HSET', head, 'facts', write_facts(facts))
for from = 1, #fields, 1000 do redis.call('HSET', dead, unpack(fields, from, math.min(from + 999, #fields))) end
if facts.deadline > 0 then redis.call('PEXPIREAT', dead, facts.deadline) end
return {'tombstoned', session, count}
