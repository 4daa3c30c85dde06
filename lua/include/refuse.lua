-- The rest of a reply for a key that a command failed on: it holds another type. Any other failure is Redis's own.
local function unusable(family, failure)
  local text = tostring(failure.err)
  if not string.find(text, 'WRONGTYPE', 1, true) then error(text) end
  return {'corrupt', family, 'holds another type'}
end

-- A refusal as a reply: its word, what is echoed, the rest.
local function refuse(session, rest)
  table.insert(rest, 2, session)
  return rest
end
