-- refresh: return what a reader lacks of a session that it has read before; reads only.
--
-- KEYS   1 head     hash  facts, refs, body, receipts, ledger rows
--        2 log      list  node records
--        3 nodes    hash  node id -> position, counted
--        4 jumps    list  position:parent position
--        5 dead     hash  position -> node id
--        6 state    hash  private components, p plugin snapshot, x execution state
--
-- ARGV   1 session  str    session id, echoed
--        2 facts    str    the head's facts that the reader knows
--        3 tag      bytes  8: tag of the commit that the reader knows
--        4 mark     bytes  4: checksum of the last record of the log that the reader knows; '' if it lacks the record
--        5 tombs    str    positions that the reader knows as dead, separated by blanks; '' for none or too many
--        6 refs     bytes  the head's refs that the reader knows
--        7 access   str    owner for whom the caller acts; '' for a trusted caller
--        8 limit    int    maximum number of new nodes, of new jumps and of dead positions to return
--
-- Reply  same <session>                                  the session has not changed
--        newer <session> <head> <log> <jumps> <dead> <state>
--                                                        the head's fields and values; the new ends of both lists; the
--                                                        dead positions, unless the reader knows them or there are
--                                                        none; the private components, unless the reader knows them
--        far <session>                                   more than `limit`: native commands return it faster
--        other <session>                                 the reader's nodes are not part of this log: load it again
--        absent <session>                                the session has no head
--        foreign <session>                               the session is another owner's than `access`
--        corrupt <session> <family> <reason>             stored data violates an invariant
--        evicted <session> <family> <reason>             a key of the session is gone
--
-- Order  the script compares the sizes of the keys first, so that it never reports a session with missing parts as the
--        same or newer.
--        While its epoch lasts, a log only grows, and so does the number of its hidden nodes. But a failover may have
--        replaced commits and tombstones by others. The tag, the mark and the positions show that.
-- Cost   one round trip, about ten commands; O(new nodes), and independent of the length of the log.

--@include refuse
--@include numbers
--@include head

local head, log, nodes, jumps, dead, state = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local session, facts, tag, mark, tombs, refs = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local access, limit = ARGV[7], tonumber(ARGV[8])

-- CHECK

local now, wrong, stored = open_head(head, {log, nodes, jumps, dead, state}, access)
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
