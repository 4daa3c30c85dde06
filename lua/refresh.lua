-- refresh: hand over what a reader does not know yet of a session that it has read before; reads only.
--
-- KEYS   1 head     hash  facts, refs, body, receipts, ledger rows
--        2 log      list  node records
--        3 nodes    hash  node id -> position, counted
--        4 jumps    list  position:parent position
--        5 dead     hash  position -> node id
--        6 state    hash  private components, p plugin snapshot, x execution state
--
-- ARGV   1 session  str    session id, echoed
--        2 facts    str    the head's, as the reader knows them
--        3 tag      bytes  8: the commit the reader knows
--        4 mark     bytes  4: how the last record ends that the reader knows of; '' where it does not hold it
--        5 tombs    str    positions that the reader knows as dead, blanks between; '' for none or too many to say
--        6 refs     bytes  the head's, as the reader knows them
--        7 limit    int    new nodes, new jumps and dead positions to hand over at the most, of each
--
-- Reply  same <session>                                  the reader would read what it has read
--        newer <session> <head> <log> <jumps> <dead> <state>
--                                                        the head's fields and values; the new ends of both lists; the
--                                                        dead positions, unless the reader knows them or there are
--                                                        none; the private components, unless it knows the refs
--        far <session>                                   more than `limit`: native commands hand it over faster
--        other <session>                                 what the reader holds is not part of it: read all anew
--        absent <session>                                the session has no head
--        corrupt <session> <family> <reason>             stored bytes break a law
--        evicted <session> <family> <reason>             a key of the session is gone
--
-- Order  what the head counts is compared first: nothing of a torn session is new, or the same.
--        A log only grows while its epoch lasts, and so does the number of nodes hidden in it. But a failover may have
--        taken commits and tombstones back, and others in their place: hence the tag, the mark and the positions.
-- Cost   one round trip; about ten commands and what is new, however long the log.

--@include refuse
--@include head

local head, log, nodes, jumps, dead, state = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local session, facts, tag, mark, tombs, refs = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local limit = tonumber(ARGV[7])

-- CHECK

local now, wrong, stored = open_head(head, {log, nodes, jumps, dead, state})
wrong = wrong or now and torn(now, log, nodes, jumps, dead, state)
if wrong then return refuse(session, wrong) end
if not now then return {'absent', session} end

local known = stored.facts == facts and now or read_facts(facts)
if not known or now.epoch ~= known.epoch or now.length < known.length or now.jumps < known.jumps then
  return {'other', session}
end

local hides = now.length - now.live ~= known.length - known.live or now.dead ~= known.dead
if not hides and tombs ~= '' then
  local places = {}
  for place in string.gmatch(tombs, '%d+') do places[#places + 1] = place end
  for _, id in ipairs(redis.call('HMGET', dead, unpack(places))) do hides = hides or not id end
end
if not hides and now.revision == known.revision and now.committed == known.committed and now.bytes == known.bytes
  and tag == string.sub(stored.receipts, -16, -9) then
  return {'same', session}
end

if mark ~= '' and string.sub(redis.call('LINDEX', log, known.length - 1), -4) ~= mark then
  return {'other', session}
end
if now.length - known.length > limit or now.jumps - known.jumps > limit or hides and now.dead > limit then
  return {'far', session}
end
local log_end, jumps_end = redis.call('LRANGE', log, known.length, -1), redis.call('LRANGE', jumps, known.jumps, -1)
local dead_now = hides and redis.call('HKEYS', dead) or {}
local private = stored.refs ~= refs and redis.call('HGETALL', state) or {}
return {'newer', session, redis.call('HGETALL', head), log_end, jumps_end, dead_now, private}
