-- stream_send: append events to a stream, renew its life, and perhaps end it; a refusal changes nothing.
--
-- KEYS   1 head     hash  owner and deletion marker of the session
--        2 streams  hash  generation -> record of its stream
--        3 events   list  events of this stream
--
-- ARGV   1 session     str    session id, echoed
--        2 generation  str    id of the generation
--        3 token       str    the token that the stream was opened with
--        4 first       int    sequence number of the first of `values`
--        5 ttl         int    ms without a sign of life until the stream counts as lost
--        6 max_events  int    events to keep, at least as many as `values`
--        7 max_bytes   int    bytes of events to keep, at least as many as those of `values`
--        8 ends        str    '' to continue, f to finish, x to fail
--        9 access      str    owner of the session for whom the caller acts; '' for a trusted caller
--       10 sharded     int    1: the server is a cluster, whose channels belong to a slot as keys do
--       11 values      bytes  events
--
-- Reply  sent <session> <last> <stop>          the events are stored; number of the last one, and whether a stop was
--                                              requested
--        behind <session> <last>               an event before `first` is not stored; nothing written
--        ended <session> <state>               the stream ended: f finished, x failed, l lost; nothing written
--        taken <session>                       another producer has the generation; nothing written
--        gone <session>                        there is no stream; nothing written
--        foreign <session>                     the session is another owner's than `access`; nothing written
--        deleted <session>                     the session was deleted; nothing written
--        corrupt <session> <family> <reason>   stored data violates an invariant; nothing written
--        evicted <session> <family> <reason>   a key of the stream is gone; nothing written
--
-- Order  events that a retry sends again have numbers up to `last`, so they are skipped. A lost stream stays lost:
--        its followers may know it already. After a failover that lost events, the producer sends from `last` on.
-- Cost   one round trip, some nine commands; O(events sent and dropped).

--@include refuse
--@include numbers
--@include head
--@include clock
--@include streams
--@include stream_access

local head, streams, events = KEYS[1], KEYS[2], KEYS[3]
local session, generation, token, first, ttl = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local max_events, max_bytes, ends = tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8]
local access, sharded, values = ARGV[9], ARGV[10] == '1', 11

-- CHECK

local stream, now = open_stream(head, streams, events, generation, access)
if stream == nil then return refuse(session, now) end
if not stream then return {'gone', session} end
if stream.token ~= token then return {'taken', session} end
if stream.state ~= 'r' then return {'ended', session, stream.state} end
if first > stream.last + 1 then return {'behind', session, stream.last} end

local from, size = values + stream.last + 1 - first, 0 -- values before that are stored already
local count = math.max(0, #ARGV - from + 1)
for index = from, #ARGV do size = size + #ARGV[index] end
local drop, freed = plan_drop(events, stream, count, size, max_events, max_bytes)
stream.last, stream.kept, stream.bytes = stream.last + count, stream.kept + count - drop, stream.bytes + size - freed
stream.deadline = now + ttl
if ends ~= '' then stream.state, stream.deadline = ends, now end

-- WRITE

--@include announcing
--@include streaming

redis.call('HSET', streams, generation, write_stream(stream))
for at = from, #ARGV, 500 do redis.call('RPUSH', events, unpack(ARGV, at, math.min(at + 499, #ARGV))) end
if drop > 0 then redis.call('LTRIM', events, drop, -1) end
expire_stream(streams, events, stream, now)
if count > 0 or ends ~= '' then announce(sharded, events, 'sent') end
return {'sent', session, stream.last, tonumber(stream.stop)}
