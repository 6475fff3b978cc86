"""Classic algorithms in Lua, as (title, names to choose from, source, call).

`$name` stands for one of its names and `fn` for the function's; a call may hold #N (a number) and #S (a string).
Sources are indented by two spaces; the program's own indentation and quotes replace them.
"""

NUMBER = ["n", "value", "num"]
LIST = ["list", "items", "values", "array", "t"]
TEXT = ["s", "text", "str", "input"]
OUT = ["out", "result", "parts", "acc"]

ALGORITHMS = (
    ("Greatest common divisor.", {"fn": ["gcd", "greatest divisor"], "a": ["a", "x"], "b": ["b", "y"]}, """
local function $fn($a, $b)
  while $b ~= 0 do
    $a, $b = $b, $a % $b
  end
  return $a
end
""", "$fn(#N, #N)"),
    ("Product of the numbers up to n.", {"fn": ["factorial", "fact"], "n": NUMBER}, """
local function $fn($n)
  if $n <= 1 then
    return 1
  end
  return $n * $fn($n - 1)
end
""", "$fn(#N)"),
    ("Fibonacci number, without recursion.",
     {"fn": ["fib", "fibonacci"], "n": NUMBER, "a": ["a", "prev"], "b": ["b", "cur"]}, """
local function $fn($n)
  local $a, $b = 0, 1
  for _ = 1, $n do
    $a, $b = $b, $a + $b
  end
  return $a
end
""", "$fn(#N)"),
    ("Primes by sieving.", {"fn": ["primes", "sieve", "primes up to"], "n": ["limit", "n", "max"], "out": OUT}, """
local function $fn($n)
  local composite, $out = {}, {}
  for i = 2, $n do
    if not composite[i] then
      $out[#$out + 1] = i
      for j = i * i, $n, i do
        composite[j] = true
      end
    end
  end
  return $out
end
""", "table.concat($fn(#N), ' ')"),
    ("Sort in place by swapping neighbours.", {"fn": ["bubble sort", "sort numbers"], "list": LIST}, """
local function $fn($list)
  local swapped
  repeat
    swapped = false
    for i = 1, #$list - 1 do
      if $list[i] > $list[i + 1] then
        $list[i], $list[i + 1] = $list[i + 1], $list[i]
        swapped = true
      end
    end
  until not swapped
  return $list
end
""", "table.concat($fn({ #N, #N, #N, #N }), ', ')"),
    ("Sort in place by insertion.",
     {"fn": ["insertion sort", "sort list"], "list": LIST, "key": ["key", "current"]}, """
local function $fn($list)
  for i = 2, #$list do
    local $key, j = $list[i], i - 1
    while j > 0 and $list[j] > $key do
      $list[j + 1] = $list[j]
      j = j - 1
    end
    $list[j + 1] = $key
  end
  return $list
end
""", "table.concat($fn({ #N, #N, #N, #N, #N }), ' ')"),
    ("Position of a value in a sorted list, or nil.",
     {"fn": ["binary search", "search"], "list": LIST, "goal": ["target", "wanted"]}, """
local function $fn($list, $goal)
  local low, high = 1, #$list
  while low <= high do
    local mid = (low + high) // 2
    if $list[mid] == $goal then
      return mid
    elseif $list[mid] < $goal then
      low = mid + 1
    else
      high = mid - 1
    end
  end
  return nil
end
""", "$fn({ 1, 3, 5, 8, 13, 21, 34 }, #N)"),
    ("Split a string at a separator.",
     {"fn": ["split", "split string"], "s": TEXT, "sep": ["sep", "delimiter"], "out": OUT}, """
local function $fn($s, $sep)
  local $out = {}
  for piece in $s:gmatch('[^' .. $sep .. ']+') do
    table.insert($out, piece)
  end
  return $out
end
""", "#$fn(#S, ' ')"),
    ("Remove white space at both ends.", {"fn": ["trim", "strip"], "s": TEXT}, """
local function $fn($s)
  return ($s:gsub('^%s+', ''):gsub('%s+$', ''))
end
""", "$fn(#S .. '  ')"),
    ("Tell whether a string reads the same backwards.",
     {"fn": ["is palindrome", "same backwards"], "s": TEXT, "plain": ["plain", "clean"]}, """
local function $fn($s)
  local $plain = $s:lower():gsub('%W', '')
  return $plain == $plain:reverse()
end
""", "$fn(#S), $fn('level')"),
    ("Count how often each word occurs.",
     {"fn": ["count words", "word counts"], "s": TEXT, "out": ["counts", "seen", "tally"]}, """
local function $fn($s)
  local $out = {}
  for word in $s:gmatch('%a+') do
    word = word:lower()
    $out[word] = ($out[word] or 0) + 1
  end
  return $out
end
""", "next($fn(#S))"),
    ("Shift letters by a number of places.",
     {"fn": ["shift letters", "caesar", "rotate text"], "s": TEXT, "k": ["shift", "k", "offset"]}, """
local function $fn($s, $k)
  return ($s:gsub('%l', function(c)
    return string.char((c:byte() - 97 + $k) % 26 + 97)
  end))
end
""", "$fn(#S, #N)"),
    ("Run-length encoding.", {"fn": ["encode runs", "rle"], "s": TEXT, "out": OUT, "run": ["run", "count"]}, """
local function $fn($s)
  local $out, i = {}, 1
  while i <= #$s do
    local c, $run = $s:sub(i, i), 1
    while $s:sub(i + $run, i + $run) == c do
      $run = $run + 1
    end
    $out[#$out + 1] = c .. $run
    i = i + $run
  end
  return table.concat($out)
end
""", "$fn(#S)"),
    ("Multiply two matrices.",
     {"fn": ["matmul", "multiply"], "a": ["a", "left"], "b": ["b", "right"], "out": ["out", "product"]}, """
local function $fn($a, $b)
  local $out = {}
  for i = 1, #$a do
    $out[i] = {}
    for j = 1, #$b[1] do
      local sum = 0
      for k = 1, #$b do
        sum = sum + $a[i][k] * $b[k][j]
      end
      $out[i][j] = sum
    end
  end
  return $out
end
""", "$fn({ { #N, 2 }, { 3, #N } }, { { 1, #N }, { 0, 1 } })[1][2]"),
    ("Steps until the Collatz sequence reaches one.",
     {"fn": ["collatz", "collatz steps"], "n": NUMBER, "k": ["steps", "count"]}, """
local function $fn($n)
  local $k = 0
  while $n > 1 do
    $n = $n % 2 == 0 and $n // 2 or 3 * $n + 1
    $k = $k + 1
  end
  return $k
end
""", "$fn(#N)"),
    ("A first-in, first-out queue.",
     {"fn": ["new queue", "make queue"], "first": ["first", "head"], "last": ["last", "tail"]}, """
local function $fn()
  local $first, $last, slots = 1, 0, {}
  local queue = {}
  function queue.push(value)
    $last = $last + 1
    slots[$last] = value
  end
  function queue.pop()
    if $first > $last then
      return nil, 'queue is empty'
    end
    local value = slots[$first]
    slots[$first] = nil
    $first = $first + 1
    return value
  end
  return queue
end
""", "$fn().pop()"),
    ("Copy a table and the tables inside it.",
     {"fn": ["deep copy", "clone"], "from": ["original", "source", "value"], "to": ["copy", "target"]}, """
local function $fn($from)
  if type($from) ~= 'table' then
    return $from
  end
  local $to = {}
  for key, inner in pairs($from) do
    $to[$fn(key)] = $fn(inner)
  end
  return setmetatable($to, getmetatable($from))
end
""", "#$fn({ #N, { #N }, #S })"),
    ("Visit a graph breadth first.",
     {"fn": ["bfs", "reachable", "visit all"], "graph": ["graph", "edges", "links"], "seen": ["seen", "visited"]}, """
local function $fn($graph, start)
  local $seen, pending, order = { [start] = true }, { start }, {}
  while #pending > 0 do
    local node = table.remove(pending, 1)
    order[#order + 1] = node
    for _, other in ipairs($graph[node] or {}) do
      if not $seen[other] then
        $seen[other] = true
        pending[#pending + 1] = other
      end
    end
  end
  return order
end
""", "#$fn({ a = { 'b', 'c' }, b = { 'd' }, c = { 'd' } }, 'a')"),
    ("Write a number in another base.",
     {"fn": ["to base", "digits"], "n": NUMBER, "base": ["base", "radix"], "out": OUT}, """
local function $fn($n, $base)
  local $out = {}
  repeat
    table.insert($out, 1, ('0123456789abcdef'):sub($n % $base + 1, $n % $base + 1))
    $n = $n // $base
  until $n == 0
  return table.concat($out)
end
""", "$fn(#N, 2), $fn(#N, 16)"),
    ("Yield the permutations of a list.", {"fn": ["permute", "permutations"], "list": LIST, "k": ["k", "n"]}, """
local function $fn($list, $k)
  $k = $k or #$list
  if $k <= 1 then
    coroutine.yield($list)
    return
  end
  for i = 1, $k do
    $list[i], $list[$k] = $list[$k], $list[i]
    $fn($list, $k - 1)
    $list[i], $list[$k] = $list[$k], $list[i]
  end
end
""", "table.concat(coroutine.wrap(function() $fn({ #N, #N, #N }) end)(), ' ')"),
    ("Fill the blanks of a template.",
     {"fn": ["render", "fill template"], "s": ["template", "pattern"], "vars": ["vars", "values", "context"]}, """
local function $fn($s, $vars)
  return ($s:gsub('{(%w+)}', function(key)
    return tostring($vars[key] or '')
  end))
end
""", "$fn('{name}: {count}\\\\n', { name = #S, count = #N })"),
    ("Fold a list into one value.", {"fn": ["reduce", "fold"], "list": LIST, "acc": ["acc", "result", "total"]}, """
local function $fn($list, fn, $acc)
  for _, item in ipairs($list) do
    $acc = fn($acc, item)
  end
  return $acc
end
""", "$fn({ #N, #N, #N }, function(a, b) return a + b end, 0)"),
)  # fmt: skip
