/**
 * The driver's own functions. Bash builtins only: each program that a driver starts becomes part of the contract that is
 * narrowed to what ran. `env` is the exception, for a variable that bash cannot set; `timeout` for a step that has one.
 *
 * A value is in V and its type in T: s, b, n, z (compile.ts). Keys of the associative arrays begin with ":", for bash
 * takes the subscripts @ and * for all elements and refuses an empty one. The file names that steps write to do not
 * change from run to run, or a contract narrowed by one run would refuse the next.
 */
export const RUNTIME = String.raw`
declare -A ambit_base=() ambit_env=() ambit_now=() ambit_secrets=() ambit_outputs=() ambit_outcomes=() ambit_conclusions=()
ambit_job=success
ambit_paths=

ambit_fail() { printf 'ambit: %s\n' "$1" >&2; exit 2; }
ambit_say() { printf 'ambit: %s\n' "$1" >&2; }

ambit_true() {
  case $T in
    b) [[ $V == true ]] ;;
    n) [[ ! $V =~ ^-?0+(\.0*)?$ ]] ;;
    s) [[ -n $V ]] ;;
    *) return 1 ;;
  esac
}
ambit_not() { if ambit_true; then V=false; else V=true; fi; T=b; }
ambit_string() { T=s; }

ambit_status() {
  V=false T=b
  case $1 in
    always) V=true ;;
    success) [[ $ambit_job == success ]] && V=true ;;
    failure) [[ $ambit_job == failure ]] && V=true ;;
  esac
}

ambit_secret() { V=\${ambit_secrets[":$1"]-}; if [[ -n \${ambit_secrets[":$1"]+x} ]]; then T=s; else T=z; fi; }
ambit_output() { V=\${ambit_outputs[":$1/$2"]-}; if [[ -n \${ambit_outputs[":$1/$2"]+x} ]]; then T=s; else T=z; fi; }
ambit_result() {
  if [[ $1 == outcome ]]; then V=\${ambit_outcomes[":$2"]-}; else V=\${ambit_conclusions[":$2"]-}; fi
  if [[ -n $V ]]; then T=s; else T=z; fi
}
ambit_variable() {
  if [[ $1 == job ]]; then local -n from=ambit_env; else local -n from=ambit_now; fi
  V=\${from[":$2"]-}
  if [[ -n \${from[":$2"]+x} ]]; then T=s; else T=z; fi
}

# V as a number of plain decimals: sign, digits and fraction without needless zeros; "nan" if it is none.
ambit_number() {
  local sign= digits fraction=
  case $T in
    z) V=0 ;;
    b) if [[ $V == true ]]; then V=1; else V=0; fi ;;
    s) V="\${V#"\${V%%[![:space:]]*}"}"; V="\${V%"\${V##*[![:space:]]}"}"; [[ -z $V ]] && V=0 ;;
  esac
  T=n
  if [[ $V =~ ^([+-]?)([0-9]*)(\.([0-9]*))?$ && -n \${BASH_REMATCH[2]}\${BASH_REMATCH[4]} ]]; then
    sign=\${BASH_REMATCH[1]} digits=\${BASH_REMATCH[2]} fraction=\${BASH_REMATCH[4]}
    while [[ $digits == 0* ]]; do digits=\${digits:1}; done
    while [[ $fraction == *0 ]]; do fraction=\${fraction%0}; done
    [[ $sign == + || -z $digits$fraction ]] && sign=
    V=$sign\${digits:-0}\${fraction:+.$fraction}
  elif [[ \${V,,} =~ ^[+-]?(0x[0-9a-f]+|0o[0-7]+|infinity|[0-9.]+e[+-]?[0-9]+)$ ]]; then
    ambit_fail "cannot compare $V: only plain decimal numbers are compared here"
  else
    V=nan
  fi
}

# Are the numbers $1 and $2, as ambit_number leaves them, in rising order?
ambit_rising() {
  local a=$1 b=$2 swap LC_ALL=C
  if [[ $a == -* && $b != -* ]]; then return 0; fi
  if [[ $a != -* && $b == -* ]]; then return 1; fi
  if [[ $a == -* ]]; then swap=\${a:1} a=\${b:1} b=$swap; fi
  local ai=\${a%%.*} bi=\${b%%.*}
  if ((\${#ai} != \${#bi})); then ((\${#ai} < \${#bi})); return; fi
  [[ $a < $b ]]
}

# $2 (of type $3) compared with V (of type T), as GitHub does: strings in any case, different types as numbers.
ambit_compare() {
  local operator=$1 left=$2 kind=$3 right=$V same=false less=false more=false LC_ALL
  if [[ $kind == "$T" && $kind == s ]]; then
    left=\${left^^} right=\${right^^}
    LC_ALL=C
    [[ $left == "$right" ]] && same=true
    [[ $left < $right ]] && less=true
    [[ $left > $right ]] && more=true
  elif [[ $kind == "$T" && $kind == z ]]; then
    same=true
  else
    ambit_number; right=$V
    V=$left T=$kind; ambit_number; left=$V
    if [[ $left != nan && $right != nan ]]; then
      if [[ $left == "$right" ]]; then same=true
      elif ambit_rising "$left" "$right"; then less=true
      else more=true
      fi
    fi
  fi
  T=b V=false
  case $operator in
    '==') V=$same ;;
    '!=') [[ $same == false ]] && V=true ;;
    '<') V=$less ;;
    '>') V=$more ;;
    '<=') [[ $same == true || $less == true ]] && V=true ;;
    '>=') [[ $same == true || $more == true ]] && V=true ;;
  esac
}

ambit_search() {
  local in=\${2,,} what=\${V,,}
  V=false T=b
  case $1 in
    contains) [[ $in == *"$what"* ]] && V=true ;;
    startswith) [[ $in == "$what"* ]] && V=true ;;
    endswith) [[ $in == *"$what" ]] && V=true ;;
  esac
}

# What a step wrote to GITHUB_ENV or GITHUB_OUTPUT: NAME=VALUE, or NAME<<MARK, lines, MARK (actions/runner, FileCommandManager.cs).
ambit_pairs() {
  local file=$1 into=$2 id=$3 line name value mark before here found
  while IFS= read -r line || [[ -n $line ]]; do
    line=\${line%$'\r'}
    [[ -z $line ]] && continue
    before=\${line%%=*} here=\${line%%'<<'*}
    if [[ $line == *=* && ( $line != *'<<'* || \${#before} -lt \${#here} ) ]]; then
      name=$before value=\${line#*=}
    elif [[ $line == *'<<'* ]]; then
      name=$here mark=\${line#*'<<'} value= found=
      [[ -z $mark ]] && { ambit_say "$file: \"$line\" has no delimiter after <<"; return 1; }
      local first=yes
      while IFS= read -r line || [[ -n $line ]]; do
        if [[ \${line%$'\r'} == "$mark" ]]; then found=yes; break; fi
        if [[ -n $first ]]; then value=$line first=; else value+=$'\n'$line; fi
      done
      [[ -z $found ]] && { ambit_say "$file: the delimiter \"$mark\" was not found"; return 1; }
    else
      ambit_say "$file: \"$line\" is neither NAME=VALUE nor NAME<<DELIMITER"
      return 1
    fi
    [[ -z $name ]] && { ambit_say "$file: a line has no name before its value"; return 1; }
    if [[ $into == output ]]; then
      ambit_outputs[":$id/\${name,,}"]=$value
    elif [[ $name == NODE_OPTIONS ]]; then
      ambit_say "$file: NODE_OPTIONS cannot be set through GITHUB_ENV"
      return 1
    elif [[ $name == GITHUB_* || $name == RUNNER_* ]]; then
      ambit_say "$file: $name belongs to the runner and stays as it is"
    else
      ambit_env[":$name"]=$value
    fi
  done < "$file"
}

ambit_path_lines() {
  local line
  while IFS= read -r line || [[ -n $line ]]; do
    line=\${line%$'\r'}
    [[ -n $line ]] && ambit_paths=$line\${ambit_paths:+:$ambit_paths}
  done < "$1"
}

# Takes down what the driver was started with: its own variables may have the same names as exported ones.
ambit_inherit() {
  local ambit_key
  for ambit_key in $(compgen -e); do
    [[ $ambit_key == ambit_* ]] || ambit_base[":$ambit_key"]=\${!ambit_key}
  done
}

# A variable that bash itself gives a meaning to, or cannot set.
ambit_special() {
  [[ ! $1 =~ ^[A-Za-z][A-Za-z0-9_]*$ || $1 =~ ^(ambit_.*|BASH.*|COMP_.*|DIRSTACK|EPOCH.*|EUID|FUNCNAME|GROUPS|HIST.*|IFS|LINENO|OPT.*|PIPESTATUS|POSIXLY_CORRECT|PPID|PS4|RANDOM|SECONDS|SHELLOPTS|SRANDOM|TMOUT|UID)$ ]]
}

# Becomes the step's shell, with the step's environment. Runs in a subshell: nothing that it sets comes back.
ambit_launch() {
  local ambit_key ambit_odd=()
  if [[ -n $ambit_paths ]]; then ambit_now[:PATH]=$ambit_paths:\${ambit_now[:PATH]-$PATH}; fi
  for ambit_key in "\${!ambit_base[@]}"; do
    ambit_special "\${ambit_key:1}" || export "\${ambit_key:1}=\${ambit_base[$ambit_key]}"
  done
  for ambit_key in "\${!ambit_now[@]}"; do
    if ambit_special "\${ambit_key:1}"; then ambit_odd+=("\${ambit_key:1}=\${ambit_now[$ambit_key]}")
    else export "\${ambit_key:1}=\${ambit_now[$ambit_key]}"
    fi
  done
  if ((\${#ambit_odd[@]})); then exec env -- "\${ambit_odd[@]}" "$@"; fi
  exec -- "$@"
}

ambit_enter() {
  local to=$1
  [[ $to == /* ]] || to=$GITHUB_WORKSPACE/$to
  cd -- "$to" || exit 1
}

ambit_finish() {
  local id=$1 outcome=$2 conclusion=$3
  if [[ -n $id ]]; then
    ambit_outcomes[":$id"]=$outcome
    ambit_conclusions[":$id"]=$conclusion
  fi
  [[ $conclusion == failure ]] && ambit_job=failure
}

# Step number $1 with id $2 and name $3: its parts are the functions ambit_environment_N, ambit_if_N, ambit_lenient_N, ambit_run_N.
ambit_step() {
  local number=$1 id=$2 title=$3 key status conclusion
  ambit_now=()
  for key in "\${!ambit_env[@]}"; do ambit_now[$key]=\${ambit_env[$key]}; done
  "ambit_environment_$number"
  "ambit_if_$number"
  if ! ambit_true; then
    printf '▷ %s (skipped)\n' "$title"
    ambit_finish "$id" skipped skipped
    return
  fi
  printf '▶ %s\n' "$title"
  local kind file
  for kind in env output path state step_summary; do
    file=$ambit_directory/step-$number.$kind
    : > "$file" || ambit_fail "cannot write $file"
    ambit_now[":GITHUB_\${kind^^}"]=$file
  done
  ( "ambit_run_$number" ) < /dev/null
  status=$?
  ambit_pairs "$ambit_directory/step-$number.env" env '' || status=1
  ambit_pairs "$ambit_directory/step-$number.output" output "$id" || status=1
  ambit_path_lines "$ambit_directory/step-$number.path"
  if ((status == 0)); then
    ambit_finish "$id" success success
    return
  fi
  printf '✗ %s: exit status %s\n' "$title" "$status"
  conclusion=failure
  "ambit_lenient_$number"
  ambit_true && conclusion=success
  ambit_finish "$id" failure "$conclusion"
}
`.replaceAll('\\${', '${').trimStart()
