-- stream_open: begin the stream of a generation that has none; otherwise change nothing.
--
-- KEYS   1 head     hash  owner and deletion marker of the session
--        2 streams  hash  generation -> record of its stream
--        3 events   list  events of this stream
--
-- ARGV   1 session     str  session id, echoed
--        2 generation  str  id of the generation
--        3 token       str  made by the producer, without blanks; identifies it
--        4 ttl         int  ms without a sign of life until the stream counts as lost
--        5 keep        int  ms that the stream is kept after its end
--        6 limit       int  streams that a session may have, those that ended and are kept included
--        7 access      str  owner of the session for whom the caller acts; '' for a trusted caller
--        8 sharded     int  1: the server is a cluster, whose channels belong to a slot as keys do
--
-- Reply  opened <session> <last> <stop>        the caller is the producer; number of the last event, and whether a stop
--                                              was requested; both are 0 unless this is a retry
--        busy <session> <state>                the generation has a stream: r running, f finished, x failed, l lost;
--                                              nothing written
--        full <session> <count>                the session has so many streams; nothing written
--        foreign <session>                     the session is another owner's than `access`; nothing written
--        deleted <session>                     the session was deleted; nothing written
--        corrupt <session> <family> <reason>   stored data violates an invariant; nothing written
--        evicted <session> <family> <reason>   a key of the stream is gone; nothing written
--
-- Order  a call that is sent twice has the same token, and one effect. Records of expired streams are removed here,
--        because a field of a hash does not expire.
-- Cost   one round trip, some nine commands; O(streams of the session).

--@include refuse
--@include numbers
--@include head
--@include clock
--@include streams
--@include stream_access

local head, streams, events = KEYS[1], KEYS[2], KEYS[3]
local session, generation, token, ttl, keep = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local limit, access, sharded = tonumber(ARGV[6]), ARGV[7], ARGV[8] == '1'

-- CHECK

local stream, now, owner = open_stream(head, streams, events, generation, access)
if stream == nil then return refuse(session, now) end
if stream and stream.token == token and stream.state == 'r' then
  return {'opened', session, stream.last, tonumber(stream.stop)}
end
if stream then return {'busy', session, stream.state} end

local fields, over, count = redis.call('HGETALL', streams), {}, 0
for at = 1, #fields, 2 do
  local name, other = fields[at], fields[at] ~= '' and read_stream(fields[at + 1], now)
  if other == nil then return refuse(session, {'corrupt', 'streams', 'a record is unreadable'}) end
  if other and is_over(other, now) then over[#over + 1] = name elseif other then count = count + 1 end
end
if count >= limit then return {'full', session, count} end
stream = {
  state = 'r', last = 0, kept = 0, bytes = 0, deadline = now + ttl, keep = keep, stop = '0', token = token,
}
local made = {generation, write_stream(stream)}
if owner ~= '' then made[3], made[4] = '', owner end

-- WRITE

--@include announcing
--@include streaming

-- A full server refuses the first HSET, and after the first write of a script it refuses no other.
redis.call('HSET', streams, unpack(made))
for _, name in ipairs(over) do
  if name ~= generation then redis.call('HDEL', streams, name) end
end
redis.call('UNLINK', events)
expire_stream(streams, events, stream, now)
announce(sharded, events, 'opened')
return {'opened', session, 0, 0}
