-- read: run native reads at one moment, for a full server, which refuses them in a transaction; reads only.
--
-- KEYS   1 keys      any  the keys of the commands, in their order
--
-- ARGV   1 scope     str  echoed
--        2 commands  any  for each command its name, its number of keys, its number of further words, these words
--
-- Reply  read <scope> <reply> ...   a reply for each command, maps as flat lists
--
-- Order  the commands run in their order; no other command runs between them.
-- Cost   one round trip; Redis returns lists several times slower through Lua than natively.

local keys, scope, commands = 1, ARGV[1], 2

-- CHECK

local replies = {'read', scope}
local at = commands
while at <= #ARGV do
  local command, key_count, words = {ARGV[at]}, tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  for index = keys, keys + key_count - 1 do command[#command + 1] = KEYS[index] end
  for index = at + 3, at + 2 + words do command[#command + 1] = ARGV[index] end
  replies[#replies + 1] = redis.call(unpack(command))
  keys, at = keys + key_count, at + 3 + words
end
return replies
