// SPDX-License-Identifier: Apache-2.0
// Small questions to the kernel and to libseccomp: buildSeccomp, syscallName, syscallNumber, landlockAbi, makeMemory, lockFile, openBeneath.
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/openat2.h>
#include <linux/seccomp.h>
#include <seccomp.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>
#include <algorithm>
#include <bit>
#include <cerrno>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "addon.hpp"
#include "common/fd.hpp"

namespace {

// Places in the list of architectures of `syscallCount` in src/evidence/records.ts.
constexpr uint32_t kArchitectures[] = {SCMP_ARCH_X86_64, SCMP_ARCH_X86, SCMP_ARCH_X32, SCMP_ARCH_AARCH64, SCMP_ARCH_ARM};
constexpr int kX32Bit = 0x40000000;  // __X32_SYSCALL_BIT

struct Call {
  int number;
  const char* name;
};
// What libseccomp 2.5.4 does not know. From 424 on, a call has one number on all of these architectures
// (Linux 7.0: arch/x86/entry/syscalls/syscall_64.tbl and syscall_32.tbl, scripts/syscall.tbl, arch/arm/tools/syscall.tbl).
constexpr Call kNewer[] = {
    {451, "cachestat"},         {452, "fchmodat2"},         {453, "map_shadow_stack"}, {454, "futex_wake"},  {455, "futex_wait"},
    {456, "futex_requeue"},     {457, "statmount"},         {458, "listmount"},        {459, "lsm_get_self_attr"},
    {460, "lsm_set_self_attr"}, {461, "lsm_list_modules"},  {462, "mseal"},            {463, "setxattrat"},  {464, "getxattrat"},
    {465, "listxattrat"},       {466, "removexattrat"},     {467, "open_tree_attr"},   {468, "file_getattr"}, {469, "file_setattr"},
    {470, "listns"},            {471, "rseq_slice_yield"},
};
// How the kernel's own trampoline behind a probed function enters on x86-64 (Linux 6.11 and 6.18, syscall_64.tbl). No program
// calls them, and a job that does gets SIGILL or an error. Kernels from 6.14 on let them pass every filter
// (kernel/seccomp.c, seccomp_uprobe_exception); on 6.11 to 6.13 a filter without them kills what a uretprobe watches.
constexpr Call kProbes[] = {{335, "uretprobe"}, {336, "uprobe"}};

bool IsX86_64() { return seccomp_arch_native() == SCMP_ARCH_X86_64; }

std::optional<int> NumberOf(const std::string& name) {
  int number = seccomp_syscall_resolve_name(name.c_str());
  if (number >= 0) return number;
  for (const Call& call : kNewer) if (name == call.name) return call.number;
  if (IsX86_64()) for (const Call& call : kProbes) if (name == call.name) return call.number;
  return std::nullopt;
}

[[noreturn]] void ThrowArgument(Napi::Env env, const std::string& what) { throw Napi::TypeError::New(env, what); }

int64_t Integer(Napi::Env env, Napi::Value value, const std::string& what, double least, double most) {
  if (!value.IsNumber()) ThrowArgument(env, what + " must be a number");
  double number = value.As<Napi::Number>().DoubleValue();
  if (std::floor(number) != number || number < least || number > most) ThrowArgument(env, what + " must be a whole number from " + std::to_string(static_cast<int64_t>(least)) + " to " + std::to_string(static_cast<int64_t>(most)));
  return static_cast<int64_t>(number);
}

std::string Text(Napi::Env env, Napi::Value value, const std::string& what) {
  if (!value.IsString()) ThrowArgument(env, what + " must be a string");
  std::string text = value.As<Napi::String>().Utf8Value();
  if (text.find('\0') != std::string::npos) ThrowArgument(env, what + " must not hold a NUL character");
  return text;
}

uint64_t Word(Napi::Env env, Napi::Value value, const std::string& what) {
  if (!value.IsBigInt()) ThrowArgument(env, what + " must be a bigint");
  bool lossless = false;
  uint64_t word = value.As<Napi::BigInt>().Uint64Value(&lossless);
  if (!lossless) ThrowArgument(env, what + " must be a bigint from 0 to 2^64 - 1");
  return word;
}

Napi::Object ObjectOf(Napi::Env env, Napi::Value value, const std::string& what) {
  if (!value.IsObject() || value.IsArray()) ThrowArgument(env, what + " must be an object");
  return value.As<Napi::Object>();
}

Napi::Array ArrayOf(Napi::Env env, Napi::Value value, const std::string& what) {
  if (!value.IsArray()) ThrowArgument(env, what + " must be an array");
  return value.As<Napi::Array>();
}

// The kernel cuts what is larger to this (include/linux/seccomp.h, MAX_ERRNO).
int ErrnoOf(Napi::Env env, Napi::Value value, const std::string& what) { return Integer(env, value, what, 1, 4095); }

scmp_compare Comparison(Napi::Env env, const std::string& name, const std::string& what) {
  const std::pair<const char*, scmp_compare> known[] = {{"eq", SCMP_CMP_EQ}, {"ne", SCMP_CMP_NE}, {"lt", SCMP_CMP_LT}, {"le", SCMP_CMP_LE}, {"gt", SCMP_CMP_GT}, {"ge", SCMP_CMP_GE}, {"masked-eq", SCMP_CMP_MASKED_EQ}};
  for (auto& [text, compare] : known) if (name == text) return compare;
  ThrowArgument(env, what + " is \"" + name + "\", which is none of eq, ne, lt, le, gt, ge, masked-eq");
}

// Of one rule; each takes at most six instructions, and a jump reaches 255 (linux/filter.h).
constexpr uint32_t kConditions = 40;

std::vector<scmp_arg_cmp> Arguments(Napi::Env env, Napi::Value value, const std::string& where) {
  std::vector<scmp_arg_cmp> out;
  if (value.IsUndefined()) return out;
  Napi::Array list = ArrayOf(env, value, where + ".args");
  if (list.Length() > kConditions) ThrowArgument(env, where + " has more than " + std::to_string(kConditions) + " conditions");
  for (uint32_t i = 0; i < list.Length(); i++) {
    const std::string what = where + ".args[" + std::to_string(i) + "]";
    Napi::Object item = ObjectOf(env, list.Get(i), what);
    scmp_arg_cmp argument = {};
    argument.arg = Integer(env, item.Get("index"), what + ".index", 0, 5);
    argument.op = Comparison(env, Text(env, item.Get("op"), what + ".op"), what + ".op");
    uint64_t word = Word(env, item.Get("value"), what + ".value");
    bool masked = argument.op == SCMP_CMP_MASKED_EQ;
    if (masked != !item.Get("mask").IsUndefined()) ThrowArgument(env, what + (masked ? ".mask is missing" : ".mask belongs to masked-eq only"));
    // libseccomp takes the mask first.
    argument.datum_a = masked ? Word(env, item.Get("mask"), what + ".mask") : word;
    argument.datum_b = masked ? word : 0;
    if (masked && (word & ~argument.datum_a) != 0) ThrowArgument(env, what + ".value has bits outside its mask: it could never match");
    out.push_back(argument);
  }
  return out;
}

// A rule that looks at arguments. libseccomp 2.5.4 forgets such a rule without a word when the same call has one without
// conditions, and lets through what a pair of rules does not allow (arg < 0 and arg >= 2^32: 1 passes). So these stand before its
// program, in classic BPF of our own.
struct Conditional {
  int number;
  uint32_t verdict;  // SECCOMP_RET_*
  std::vector<scmp_arg_cmp> arguments;
};

class Prologue {
 public:
  // Other architectures number their calls otherwise; they are left to libseccomp's program, which kills them.
  // No call of which all is known by its number has its arguments loaded, so that the kernel can remember its verdict
  // (kernel/seccomp.c, seccomp_is_const_allow).
  std::vector<sock_filter> Build(std::vector<Conditional> rules) {
    if (rules.empty()) return {};
    // Those of one call together, in their order: its number is looked at once. A short program is loaded sooner.
    std::stable_sort(rules.begin(), rules.end(), [](const Conditional& a, const Conditional& b) { return a.number < b.number; });
    Load(offsetof(seccomp_data, arch));
    const size_t foreign = Unless(seccomp_arch_native());
    for (size_t at = 0; at < rules.size();) {
      const int number = rules[at].number;
      Load(offsetof(seccomp_data, nr));
      const size_t other = Unless(number);
      for (; at < rules.size() && rules[at].number == number; at++) {
        no_.clear();
        for (const scmp_arg_cmp& argument : rules[at].arguments) Compare(argument);
        code_.push_back(BPF_STMT(BPF_RET | BPF_K, rules[at].verdict));
        Land(no_, code_.size());
      }
      LandFar(other);
    }
    LandFar(foreign);
    return code_;
  }

 private:
  enum Where { kNext, kYes, kNo };
  struct Jump { size_t at; bool if_true; };

  void Load(uint32_t offset) { code_.push_back(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offset)); }

  // Goes on if what was loaded is `value`, and else jumps, however far, to where LandFar is told.
  size_t Unless(uint32_t value) {
    code_.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 1, 0));
    code_.push_back(BPF_STMT(BPF_JMP | BPF_JA, 0));
    return code_.size() - 1;
  }

  void LandFar(size_t jump) { code_[jump].k = code_.size() - jump - 1; }

  void Test(uint16_t how, uint32_t value, Where if_true, Where if_false) {
    const size_t at = code_.size();
    code_.push_back(BPF_JUMP(static_cast<uint16_t>(BPF_JMP | how | BPF_K), value, 0, 0));
    for (bool branch : {true, false}) {
      Where where = branch ? if_true : if_false;
      if (where != kNext) (where == kYes ? yes_ : no_).push_back({at, branch});
    }
  }

  // Jumps reach 255 instructions, which kConditions keeps to.
  void Land(const std::vector<Jump>& jumps, size_t target) {
    for (const Jump& jump : jumps) (jump.if_true ? code_[jump.at].jt : code_[jump.at].jf) = target - jump.at - 1;
  }

  // All 64 bits, the upper word first.
  void Compare(const scmp_arg_cmp& argument) {
    const uint32_t low = offsetof(seccomp_data, args) + 8 * argument.arg + (std::endian::native == std::endian::big ? 4 : 0);
    const uint32_t high = low ^ 4;
    const bool masked = argument.op == SCMP_CMP_MASKED_EQ;
    const uint64_t value = masked ? argument.datum_b : argument.datum_a;
    yes_.clear();
    switch (argument.op) {
      case SCMP_CMP_EQ: case SCMP_CMP_NE: case SCMP_CMP_MASKED_EQ: {
        const Where differs = argument.op == SCMP_CMP_NE ? kYes : kNo;
        const Where same = argument.op == SCMP_CMP_NE ? kNo : kYes;
        // Of a masked comparison that does not look at the upper word, that word always matches.
        if (!masked || argument.datum_a >> 32 != 0) {
          Load(high);
          if (masked) code_.push_back(BPF_STMT(BPF_ALU | BPF_AND | BPF_K, static_cast<uint32_t>(argument.datum_a >> 32)));
          Test(BPF_JEQ, value >> 32, kNext, differs);
        }
        Load(low);
        if (masked) code_.push_back(BPF_STMT(BPF_ALU | BPF_AND | BPF_K, static_cast<uint32_t>(argument.datum_a)));
        Test(BPF_JEQ, static_cast<uint32_t>(value), same, differs);
        break;
      }
      default: {
        const bool upwards = argument.op == SCMP_CMP_GT || argument.op == SCMP_CMP_GE;
        const Where above = upwards ? kYes : kNo;
        const Where below = upwards ? kNo : kYes;
        Load(high);
        Test(BPF_JGT, value >> 32, above, kNext);
        Test(BPF_JEQ, value >> 32, kNext, below);
        Load(low);
        Test(argument.op == SCMP_CMP_GT || argument.op == SCMP_CMP_LE ? BPF_JGT : BPF_JGE, static_cast<uint32_t>(value), above, below);
      }
    }
    Land(yes_, code_.size());
  }

  std::vector<sock_filter> code_;
  std::vector<Jump> yes_, no_;
};

struct ReleaseFilter { void operator()(void* filter) const { seccomp_release(filter); } };

void Check(Napi::Env env, int result, const std::string& what) {
  if (result < 0) ThrowErrno(env, what.c_str(), -result);
}

// A refusal: what libseccomp calls it, and what the kernel does.
struct Refusal {
  uint32_t action;   // SCMP_ACT_*
  uint32_t verdict;  // SECCOMP_RET_*
};

Refusal RefusalOf(Napi::Env env, Napi::Value value, const std::string& what) {
  if (!value.IsString()) {
    const int error = ErrnoOf(env, ObjectOf(env, value, what).Get("errno"), what + ".errno");
    return {SCMP_ACT_ERRNO(error), SECCOMP_RET_ERRNO | static_cast<uint32_t>(error)};
  }
  const std::string name = Text(env, value, what);
  if (name == "kill-process") return {SCMP_ACT_KILL_PROCESS, SECCOMP_RET_KILL_PROCESS};
  if (name == "kill-thread") return {SCMP_ACT_KILL_THREAD, SECCOMP_RET_KILL_THREAD};
  if (name == "trap") return {SCMP_ACT_TRAP, SECCOMP_RET_TRAP};
  ThrowArgument(env, what + " must be \"allow\", \"kill-process\", \"kill-thread\", \"trap\" or {errno}");
}

// buildSeccomp(plan: SeccompPlan): Buffer of struct sock_filter[]. What decides, in this order: refusals with arguments, allowances with
// arguments, rules without, the default. Other architectures are killed, with x32 among them. Names that neither libseccomp
// nor kNewer knows are skipped: what is not allowed by name gets the default. Values are compared in all 64 bits: where
// the kernel looks at an int only, refuse by masked-eq with mask 0xffffffff, or the upper bits are a way around.
Napi::Value BuildSeccomp(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Napi::Object plan = ObjectOf(env, info[0], "plan");
  const int refusal = ErrnoOf(env, plan.Get("defaultErrno"), "plan.defaultErrno");
  Napi::Array rules = ArrayOf(env, plan.Get("rules"), "plan.rules");

  const Napi::Value instead = plan.Get("defaultAction");
  const uint32_t otherwise = instead.IsUndefined() ? SCMP_ACT_ERRNO(refusal) : RefusalOf(env, instead, "plan.defaultAction").action;
  std::unique_ptr<void, ReleaseFilter> filter(seccomp_init(otherwise));
  if (!filter) ThrowErrno(env, "seccomp_init", EINVAL);
  Check(env, seccomp_attr_set(filter.get(), SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS), "seccomp_attr_set ACT_BADARCH");
  // A binary tree: a call costs about 10 comparisons instead of up to 300.
  Check(env, seccomp_attr_set(filter.get(), SCMP_FLTATR_CTL_OPTIMIZE, 2), "seccomp_attr_set CTL_OPTIMIZE");
  if (IsX86_64()) for (const Call& call : kProbes) Check(env, seccomp_rule_add(filter.get(), SCMP_ACT_ALLOW, call.number, 0), std::string("allow ") + call.name);

  std::vector<Conditional> refused, allowed;
  std::map<int, uint32_t> unconditional;
  for (uint32_t i = 0; i < rules.Length(); i++) {
    const std::string where = "plan.rules[" + std::to_string(i) + "]";
    Napi::Object rule = ObjectOf(env, rules.Get(i), where);
    Napi::Value wanted = rule.Get("action");
    Refusal decision = {SCMP_ACT_ALLOW, SECCOMP_RET_ALLOW};
    if (!wanted.IsString() || Text(env, wanted, where + ".action") != "allow") decision = RefusalOf(env, wanted, where + ".action");
    const uint32_t action = decision.action;
    const std::vector<scmp_arg_cmp> arguments = Arguments(env, rule.Get("args"), where);
    Napi::Array names = ArrayOf(env, rule.Get("names"), where + ".names");
    for (uint32_t n = 0; n < names.Length(); n++) {
      const std::string name = Text(env, names.Get(n), where + ".names[" + std::to_string(n) + "]");
      const std::optional<int> number = NumberOf(name);
      if (!number) continue;
      const std::string what = where + " (" + name + ")";
      if (!arguments.empty()) {
        (action == SCMP_ACT_ALLOW ? allowed : refused).push_back({*number, decision.verdict, arguments});
        continue;
      }
      auto [other, added] = unconditional.emplace(*number, action);
      if (other->second != action) ThrowErrno(env, (what + " contradicts another rule").c_str(), EEXIST);
      // libseccomp takes no rule that says what the default says.
      if (!added || action == otherwise) continue;
      Check(env, seccomp_rule_add(filter.get(), action, *number, 0), what);
    }
  }

  ambit::Fd memory(memfd_create("seccomp", MFD_CLOEXEC));
  if (!memory) ThrowErrno(env, "memfd_create", errno);
  Check(env, seccomp_export_bpf(filter.get(), memory.get()), "seccomp_export_bpf");
  struct stat status;
  if (fstat(memory.get(), &status) != 0) ThrowErrno(env, "fstat", errno);
  refused.insert(refused.end(), allowed.begin(), allowed.end());
  const std::vector<sock_filter> prologue = Prologue().Build(refused);
  const size_t before = prologue.size() * sizeof(sock_filter);
  // The kernel takes no longer program (include/uapi/linux/bpf_common.h, BPF_MAXINSNS).
  if (status.st_size == 0 || before + status.st_size > BPF_MAXINSNS * sizeof(sock_filter)) ThrowErrno(env, "seccomp_export_bpf", E2BIG);
  Napi::Buffer<char> bytes = Napi::Buffer<char>::New(env, before + status.st_size);
  if (before > 0) memcpy(bytes.Data(), prologue.data(), before);
  if (pread(memory.get(), bytes.Data() + before, status.st_size, 0) != status.st_size) ThrowErrno(env, "pread", EIO);
  return bytes;
}

// syscallName(arch, nr): arch 0 x86_64, 1 i386, 2 x32, 3 aarch64, 4 arm, or one of libseccomp's tokens for these (AUDIT_ARCH_X86_64
// and so on). A number of x32 comes with its bit or without. Null: the number has no name, or the architecture is another.
Napi::Value SyscallName(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const uint32_t given = Integer(env, info[0], "arch", 0, UINT32_MAX);
  const uint32_t arch = given < std::size(kArchitectures) ? kArchitectures[given] : given;
  if (std::find(std::begin(kArchitectures), std::end(kArchitectures), arch) == std::end(kArchitectures)) return env.Null();
  const int64_t number = Integer(env, info[1], "nr", -1, UINT32_MAX);
  const bool x32 = arch == SCMP_ARCH_X32;
  const int64_t bare = x32 ? number & ~static_cast<int64_t>(kX32Bit) : number;
  if (bare < 0 || bare >= kX32Bit) return env.Null();
  struct Free { void operator()(char* text) const { free(text); } };
  std::unique_ptr<char, Free> name(seccomp_syscall_resolve_num_arch(arch, x32 ? bare | kX32Bit : bare));
  if (name) return Napi::String::New(env, name.get());
  for (const Call& call : kNewer) if (call.number == bare) return Napi::String::New(env, call.name);
  if (arch == SCMP_ARCH_X86_64) for (const Call& call : kProbes) if (call.number == bare) return Napi::String::New(env, call.name);
  return env.Null();
}

Napi::Value SyscallNumber(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const std::optional<int> number = NumberOf(Text(env, info[0], "name"));
  return number ? Napi::Number::New(env, *number) : env.Null();
}

// From this number on all architectures number calls alike, and each takes pointers, descriptors and flags of which none can
// be all ones: asking for it with such arguments only tells whether it is there.
constexpr int kUniform = 424;
// Older ones that a kernel may be built without, of which the same is true.
constexpr const char* kOptional[] = {"bpf", "userfaultfd", "kcmp", "fanotify_init", "add_key", "keyctl", "perf_event_open", "io_setup", "name_to_handle_at", "process_vm_readv"};

// syscallState(name): "present", "absent" (the kernel, or a filter around the daemon, answers ENOSYS), "foreign" (another architecture's), "unknown".
Napi::Value SyscallState(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const std::string name = Text(env, info[0], "name");
  const std::optional<int> number = NumberOf(name);
  if (!number) return Napi::String::New(env, seccomp_syscall_resolve_name(name.c_str()) == __NR_SCMP_ERROR ? "unknown" : "foreign");
  const bool optional = std::any_of(std::begin(kOptional), std::end(kOptional), [&](const char* one) { return name == one; });
  const bool absent = (optional || *number >= kUniform) && syscall(*number, -1L, -1L, -1L, -1L, -1L, -1L) < 0 && errno == ENOSYS;
  return Napi::String::New(env, absent ? "absent" : "present");
}

// 0: the kernel has no Landlock, or it is off.
Napi::Value LandlockAbi(const Napi::CallbackInfo& info) {
  long abi = syscall(SYS_landlock_create_ruleset, nullptr, 0, 1 /* LANDLOCK_CREATE_RULESET_VERSION */);
  return Napi::Number::New(info.Env(), abi < 0 ? 0 : abi);
}

// Memory with a descriptor: it lives as long as anybody holds one.
Napi::Value MakeMemory(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  ambit::Fd fd(memfd_create(info[0].ToString().Utf8Value().c_str(), MFD_CLOEXEC));
  if (!fd) ThrowErrno(env, "make memory to keep", errno);
  return Napi::Number::New(env, fd.Release());
}

// Null: somebody else holds the lock. It is let go with the descriptor, so also by death (flock(2)).
Napi::Value LockFile(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (info.Length() < 1 || !info[0].IsString()) throw Napi::TypeError::New(env, "lockFile(path)");
  ambit::Fd fd(open(info[0].As<Napi::String>().Utf8Value().c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!fd) ThrowErrno(env, "open the lock", errno);
  if (flock(fd.get(), LOCK_EX | LOCK_NB) == 0) return Napi::Number::New(env, fd.Release());
  if (errno != EWOULDBLOCK) ThrowErrno(env, "take the lock", errno);
  return env.Null();
}

// openBeneath(dirfd, path, flags, mode): a descriptor, always close-on-exec, of what lies below `dirfd`.
Napi::Value OpenBeneath(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const int dirfd = Integer(env, info[0], "dirfd", 0, INT32_MAX);
  const std::string path = Text(env, info[1], "path");
  const int flags = Integer(env, info[2], "flags", 0, INT32_MAX);
  const int mode = Integer(env, info[3], "mode", 0, 07777);
  struct open_how how = {};
  how.flags = static_cast<uint64_t>(flags) | O_CLOEXEC;
  // openat2 refuses a mode that has no use.
  how.mode = (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE ? mode : 0;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;
  long fd;
  // EAGAIN: something was renamed on the way (openat2(2)); a job can keep that up, so not for ever.
  for (int tries = 0; (fd = syscall(SYS_openat2, dirfd, path.c_str(), &how, sizeof how)) < 0 && (errno == EAGAIN || errno == EINTR) && tries < 32;) tries++;
  if (fd < 0) ThrowErrno(env, "openat2", errno);
  return Napi::Number::New(env, fd);
}

// attributeOf(fd, name): an extended attribute of what a descriptor, O_PATH too, is of, as text; null: it has none of the name.
Napi::Value AttributeOf(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const int fd = Integer(env, info[0], "fd", 0, INT32_MAX);
  const std::string name = Text(env, info[1], "name");
  char value[256];
  // fgetxattr takes no O_PATH descriptor; its link in /proc stands for the file itself, whatever it is.
  const ssize_t size = getxattr(("/proc/self/fd/" + std::to_string(fd)).c_str(), name.c_str(), value, sizeof value);
  if (size < 0 && (errno == ENODATA || errno == EOPNOTSUPP || errno == EPERM)) return env.Null();
  if (size < 0) ThrowErrno(env, "getxattr", errno);
  return Napi::String::New(env, value, size);
}

// setAttribute(fd, name, text): sets an extended attribute of an open file or directory.
void SetAttribute(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const int fd = Integer(env, info[0], "fd", 0, INT32_MAX);
  const std::string name = Text(env, info[1], "name"), value = Text(env, info[2], "text");
  if (fsetxattr(fd, name.c_str(), value.data(), value.size(), 0) != 0) ThrowErrno(env, "fsetxattr", errno);
}

}  // namespace

// descriptorKind(fd): what a descriptor is of, and whether it was opened with O_PATH. Nothing is read, nothing can block.
Napi::Value DescriptorKind(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const int fd = static_cast<int>(Integer(env, info[0], "fd", 0, INT32_MAX));
  struct stat status;
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0) ThrowErrno(env, "fcntl", errno);
  if (fstat(fd, &status) != 0) ThrowErrno(env, "fstat", errno);
  const char* kind = "other";
  if (S_ISREG(status.st_mode)) kind = "file";
  if (S_ISDIR(status.st_mode)) kind = "directory";
  if (S_ISFIFO(status.st_mode)) kind = "pipe";
  if (S_ISCHR(status.st_mode)) kind = "character";
  if (S_ISSOCK(status.st_mode)) {
    int domain = 0;
    socklen_t size = sizeof domain;
    kind = getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) == 0 && domain == AF_UNIX ? "unix-socket" : "socket";
  }
  Napi::Object result = Napi::Object::New(env);
  result.Set("kind", kind);
  result.Set("pathOnly", Napi::Boolean::New(env, (flags & O_PATH) != 0));
  return result;
}

void RegisterSystem(Napi::Env env, Napi::Object exports) {
  exports.Set("buildSeccomp", Napi::Function::New(env, BuildSeccomp, "buildSeccomp"));
  exports.Set("syscallName", Napi::Function::New(env, SyscallName, "syscallName"));
  exports.Set("syscallNumber", Napi::Function::New(env, SyscallNumber, "syscallNumber"));
  exports.Set("syscallState", Napi::Function::New(env, SyscallState, "syscallState"));
  exports.Set("landlockAbi", Napi::Function::New(env, LandlockAbi, "landlockAbi"));
  exports.Set("descriptorKind", Napi::Function::New(env, DescriptorKind, "descriptorKind"));
  exports.Set("attributeOf", Napi::Function::New(env, AttributeOf, "attributeOf"));
  exports.Set("setAttribute", Napi::Function::New(env, SetAttribute, "setAttribute"));
  exports.Set("makeMemory", Napi::Function::New(env, MakeMemory, "makeMemory"));
  exports.Set("lockFile", Napi::Function::New(env, LockFile, "lockFile"));
  exports.Set("openBeneath", Napi::Function::New(env, OpenBeneath, "openBeneath"));
}
