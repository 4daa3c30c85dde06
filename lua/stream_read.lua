-- stream_read: read the state of a stream, and the events that follow a cursor.
--
-- KEYS   1 head     hash  owner and deletion marker of the session
--        2 streams  hash  generation -> record of its stream
--        3 events   list  events of this stream
--
-- ARGV   1 session     str  session id, echoed
--        2 generation  str  id of the generation
--        3 after       int  number of the event before the first one to return; '' to return none
--        4 limit       int  about so many bytes of events to return, and at least one event
--        5 access      str  owner of the session for whom the caller acts; '' for a trusted caller
--
-- Reply  stream <session> <state> <last> <kept> <bytes> <deadline> <now> <stop> <token> <event> ...
--                                              state r running, f finished, x failed, l lost; number of the last event;
--                                              number and bytes of the stored events; ms since 1970 at which the stream
--                                              counts as lost, or ended; the server's clock; 1 if a stop was requested;
--                                              token of the producer; the events after `after`, if none of them was
--                                              dropped
--        absent <session>                      there is no stream, or the session is another owner's than `access`
--        deleted <session>                     the session was deleted
--        corrupt <session> <family> <reason>   stored data violates an invariant
--        evicted <session> <family> <reason>   a key of the stream is gone
--
-- Order  a script, and not native commands, because the place of an event in the list depends on the record.
-- Cost   one round trip, six commands; O(events returned), at most 1,000.

--@include refuse
--@include numbers
--@include head
--@include clock
--@include streams
--@include stream_access

local head, streams, events = KEYS[1], KEYS[2], KEYS[3]
local session, generation, after, limit, access = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]

-- CHECK

local stream, now = open_stream(head, streams, events, generation, access)
if stream == nil and now[1] ~= 'foreign' then return refuse(session, now) end
if not stream then return {'absent', session} end
local rows, from = {}, after ~= '' and after - stream.last + stream.kept
if from and from >= 0 and from < stream.kept then
  local count = math.floor(limit * stream.kept / stream.bytes)
  rows = redis.call('LRANGE', events, from, from + math.min(1000, math.max(1, count)) - 1)
end
local reply = {'stream', session, stream.state, stream.last, stream.kept, stream.bytes, stream.deadline, now}
reply[9], reply[10] = tonumber(stream.stop), stream.token
for at, row in ipairs(rows) do reply[10 + at] = row end
return reply
