-- stream_stop: request the producer of a stream to stop; without a producer, change nothing.
--
-- KEYS   1 head     hash  owner and deletion marker of the session
--        2 streams  hash  generation -> record of its stream
--        3 events   list  events of this stream, counted
--
-- ARGV   1 session     str  session id, echoed
--        2 generation  str  id of the generation
--        3 channel     str  the producer subscribes to it
--        4 access      str  owner of the session for whom the caller acts; '' for a trusted caller
--        5 sharded     int  1: the server is a cluster, whose channels belong to a slot as keys do
--
-- Reply  stopping <session>                    the record has the request
--        idle <session>                        there is no running stream; nothing written
--        foreign <session>                     the session is another owner's than `access`; nothing written
--        deleted <session>                     the session was deleted; nothing written
--        corrupt <session> <family> <reason>   stored data violates an invariant; nothing written
--        evicted <session> <family> <reason>   a key of the stream is gone; nothing written
--
-- Order  the producer reads the record after any message, and the reply to each of its calls has the request, too.
-- Cost   one round trip, six commands.

--@include refuse
--@include numbers
--@include head
--@include clock
--@include streams
--@include stream_access

local head, streams, events = KEYS[1], KEYS[2], KEYS[3]
local session, generation, channel, access, sharded = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5] == '1'

-- CHECK

local stream, now = open_stream(head, streams, events, generation, access)
if stream == nil then return refuse(session, now) end
if not stream or stream.state ~= 'r' then return {'idle', session} end
stream.stop = '1'

-- WRITE

--@include announcing

redis.call('HSET', streams, generation, write_stream(stream))
announce(sharded, channel, 'stop')
return {'stopping', session}
