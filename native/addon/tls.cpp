// SPDX-License-Identifier: Apache-2.0
#include "tls.hpp"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <elf.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <optional>
#include <thread>

#include "common/fd.hpp"
#include "common/mount-api.hpp"

namespace {

struct Function {
  const char* name;
  bool required;  // no version of the library is without it
  const char* enter;
  const char* leave;  // null: only the call matters
};

const std::vector<Function> kOpenssl = {
    {"SSL_write", true, "plain_enter", "openssl_write_return"},
    {"SSL_read", true, "plain_enter", "openssl_read_return"},
    {"SSL_free", true, "openssl_free", nullptr},
    // Makes an object ready for another connection, which hardly anyone does.
    {"SSL_clear", false, "openssl_free", nullptr},
    // OpenSSL 1.1.1; BoringSSL has none of them.
    {"SSL_write_ex", false, "ex_enter", "openssl_write_ex_return"},
    {"SSL_read_ex", false, "ex_enter", "openssl_read_ex_return"},
    {"SSL_write_early_data", false, "ex_enter", "openssl_write_ex_return"},
};
const std::vector<Function> kGnutls = {
    {"gnutls_record_send", true, "plain_enter", "gnutls_write_return"},
    {"gnutls_record_recv", true, "plain_enter", "gnutls_read_return"},
    {"gnutls_deinit", true, "gnutls_free", nullptr},
};

// Links that hold many probes (Linux 6.6, include/uapi/linux/bpf.h), which neither libbpf 1.1 nor its headers know.
// A probe of the older kind takes 100 ms to come off, one after the other under one lock of the kernel.
constexpr auto kUprobeMulti = static_cast<bpf_attach_type>(48);  // BPF_TRACE_UPROBE_MULTI
constexpr uint32_t kAtReturn = 1;                                // BPF_F_UPROBE_MULTI_RETURN
struct MultiLink {
  uint32_t program, target, attach_type, flags;
  uint64_t path, offsets, reference_offsets, cookies;
  uint32_t count, multi_flags, pid, padding;
};

int LinkMulti(int program, const char* path, const std::vector<uint64_t>& offsets, bool at_return) {
  MultiLink link = {};
  link.program = program;
  link.attach_type = kUprobeMulti;
  link.path = reinterpret_cast<uint64_t>(path);
  link.offsets = reinterpret_cast<uint64_t>(offsets.data());
  link.count = offsets.size();
  link.multi_flags = at_return ? kAtReturn : 0;
  return syscall(SYS_bpf, BPF_LINK_CREATE, &link, sizeof link);
}

// The kernel looks at the file once it knows the kind of link: for a folder it then says EBADF (libbpf's own test).
bool KernelHasMulti() {
  const bpf_insn program[] = {{.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0, .src_reg = 0, .off = 0, .imm = 0}, {.code = BPF_JMP | BPF_EXIT, .dst_reg = 0, .src_reg = 0, .off = 0, .imm = 0}};
  LIBBPF_OPTS(bpf_prog_load_opts, options, .expected_attach_type = kUprobeMulti);
  ambit::Fd loaded(bpf_prog_load(BPF_PROG_TYPE_KPROBE, "ambit_probe", "GPL", program, 2, &options));
  if (!loaded) return false;
  ambit::Fd link(LinkMulti(loaded.get(), "/", {0}, false));
  return !link && errno == EBADF;
}

// libbpf says why only to its print function, which belongs to the whole process: borrowed while one call lasts.
class Warnings {
 public:
  Warnings() {
    text_.clear();
    previous_ = libbpf_set_print(Take);
  }
  ~Warnings() { libbpf_set_print(previous_); }
  Warnings(const Warnings&) = delete;
  Warnings& operator=(const Warnings&) = delete;

  std::string Tail(size_t size) const { return text_.size() > size ? text_.substr(text_.size() - size) : text_; }

 private:
  static int Take(enum libbpf_print_level level, const char* format, va_list arguments) {
    if (level != LIBBPF_WARN) return 0;
    va_list again;
    va_copy(again, arguments);
    int length = vsnprintf(nullptr, 0, format, arguments);
    if (length > 0) {
      std::string line(length + 1, '\0');
      vsnprintf(line.data(), line.size(), format, again);
      line.pop_back();
      text_ += line;
    }
    va_end(again);
    return length;
  }

  static inline thread_local std::string text_;
  libbpf_print_fn_t previous_;
};

// Functions of a 64-bit ELF file by name, as offsets in the file: what the kernel asks for. Every read is bounded by the file.
class Symbols {
 public:
  explicit Symbols(int fd) : fd_(fd) {}

  // Null and `why` if the file is no ELF file of this machine's word and byte order.
  std::optional<std::map<std::string, uint64_t>> Find(const std::vector<Function>& wanted, std::string* why) {
    Elf64_Ehdr header;
    if (!Read(0, &header, sizeof header) || memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_ident[EI_CLASS] != ELFCLASS64 ||
        header.e_ident[EI_DATA] != ELFDATA2LSB || header.e_shentsize != sizeof(Elf64_Shdr) || header.e_phentsize != sizeof(Elf64_Phdr)) {
      *why = "not a 64-bit ELF file";
      return std::nullopt;
    }
    std::vector<Elf64_Shdr> sections(header.e_shnum);
    std::vector<Elf64_Phdr> segments(header.e_phnum);
    if (!Read(header.e_shoff, sections.data(), sections.size() * sizeof(Elf64_Shdr)) || !Read(header.e_phoff, segments.data(), segments.size() * sizeof(Elf64_Phdr))) {
      *why = "its ELF tables lie outside the file";
      return std::nullopt;
    }
    std::map<std::string, uint64_t> found;
    for (uint32_t type : {SHT_DYNSYM, SHT_SYMTAB})
      for (const Elf64_Shdr& section : sections)
        if (section.sh_type == type && section.sh_link < sections.size() && found.size() < wanted.size()) Search(section, sections[section.sh_link], segments, wanted, &found);
    return found;
  }

 private:
  static constexpr uint64_t kTableLimit = 256 << 20;

  bool Read(uint64_t offset, void* into, uint64_t size) const {
    char* at = static_cast<char*>(into);
    while (size > 0) {
      ssize_t got = pread(fd_, at, size, offset);
      if (got <= 0) return false;
      at += got; offset += got; size -= got;
    }
    return true;
  }

  void Search(const Elf64_Shdr& table, const Elf64_Shdr& strings, const std::vector<Elf64_Phdr>& segments, const std::vector<Function>& wanted, std::map<std::string, uint64_t>* found) const {
    if (table.sh_size > kTableLimit || strings.sh_size == 0 || strings.sh_size > kTableLimit) return;
    std::vector<Elf64_Sym> symbols(table.sh_size / sizeof(Elf64_Sym));
    std::vector<char> names(strings.sh_size);
    if (!Read(table.sh_offset, symbols.data(), symbols.size() * sizeof(Elf64_Sym)) || !Read(strings.sh_offset, names.data(), names.size())) return;
    names.back() = '\0';
    for (const Elf64_Sym& symbol : symbols) {
      if (ELF64_ST_TYPE(symbol.st_info) != STT_FUNC || symbol.st_shndx == SHN_UNDEF || symbol.st_name >= names.size()) continue;
      const char* name = names.data() + symbol.st_name;
      for (const Function& function : wanted) {
        if (strcmp(name, function.name) != 0) continue;
        for (const Elf64_Phdr& segment : segments)
          if (segment.p_type == PT_LOAD && (segment.p_flags & PF_X) && symbol.st_value >= segment.p_vaddr && symbol.st_value - segment.p_vaddr < segment.p_filesz)
            found->emplace(name, symbol.st_value - segment.p_vaddr + segment.p_offset);
      }
    }
  }

  int fd_;
};

std::string BaseName(const std::string& path) {
  size_t slash = path.rfind('/');
  return slash == std::string::npos ? path : path.substr(slash + 1);
}

}  // namespace

TlsProbes::TlsProbes(std::string object_path, std::function<int(bpf_object*)> share_maps)
    : object_path_(std::move(object_path)), share_maps_(std::move(share_maps)) {}

TlsProbes::~TlsProbes() {
  Detach();
  if (object_) bpf_object__close(object_);
}

bool TlsProbes::Load(std::string* why) {
  if (object_) return true;
  Warnings warnings;
  bpf_object* object = bpf_object__open_file(object_path_.c_str(), nullptr);
  if (!object) {
    *why = "open " + object_path_ + ": " + strerror(errno);
    return false;
  }
  multi_ = KernelHasMulti();
  if (multi_) {
    bpf_program* program;
    bpf_object__for_each_program(program, object) bpf_program__set_expected_attach_type(program, kUprobeMulti);
  }
  int error = share_maps_(object);
  const char* step = "share the maps";
  if (error == 0) {
    error = bpf_object__load(object);
    step = "load the programs";
  }
  if (error != 0) {
    *why = std::string(step) + ": " + strerror(-error) + "\n" + warnings.Tail(2000);
    bpf_object__close(object);
    return false;
  }
  object_ = object;
  return true;
}

// 0 or an errno. Either all offsets are attached or none.
int TlsProbes::AttachProgram(const char* program, bool at_return, const std::string& file, const std::vector<uint64_t>& offsets, Library* library) {
  bpf_program* found = bpf_object__find_program_by_name(object_, program);
  if (!found) return ENOENT;
  if (multi_) {
    int link = LinkMulti(bpf_program__fd(found), file.c_str(), offsets, at_return);
    if (link < 0) return errno;
    library->multi.push_back(link);
    return 0;
  }
  std::vector<bpf_link*> links;
  for (uint64_t offset : offsets) {
    LIBBPF_OPTS(bpf_uprobe_opts, options, .retprobe = at_return);
    Warnings unheard;
    bpf_link* link = bpf_program__attach_uprobe_opts(found, -1, file.c_str(), offset, &options);
    if (!link) {
      int error = errno;
      for (bpf_link* one : links) bpf_link__destroy(one);
      return error;
    }
    links.push_back(link);
  }
  library->links.insert(library->links.end(), links.begin(), links.end());
  return 0;
}

std::vector<HookState> TlsProbes::Attach(const std::string& path, const std::string& flavour) {
  const std::string prefix = "uprobe/" + BaseName(path);
  auto missing = [&](const std::string& why) { return std::vector<HookState>{{prefix, "api", "missing", why}}; };
  if (!object_) return missing("the programs are not loaded");
  if (flavour != "openssl" && flavour != "gnutls") return missing("unknown flavour \"" + flavour + "\"");
  const std::vector<Function>& wanted = flavour == "openssl" ? kOpenssl : kGnutls;

  // Held open until all probes are on: what is attached to is what was looked at, whatever becomes of the path.
  // NONBLOCK: a pipe must not keep us waiting.
  ambit::Fd file(ambit::OpenAt2(AT_FDCWD, path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK, RESOLVE_NO_MAGICLINKS));
  if (!file) return missing("open " + path + ": " + strerror(errno));
  struct stat status;
  if (fstat(file.get(), &status) != 0) return missing("stat " + path + ": " + strerror(errno));
  if (!S_ISREG(status.st_mode)) return missing(path + " is not a regular file");

  const std::pair<uint64_t, uint64_t> inode = {status.st_dev, status.st_ino};
  if (auto known = libraries_.find(inode); known != libraries_.end()) return known->second.states;

  std::string why;
  const auto symbols = Symbols(file.get()).Find(wanted, &why);
  if (!symbols) return missing(path + " is " + why);

  // Entries before returns: a return without its entry would count as a loss.
  Library library;
  const std::string held = "/proc/self/fd/" + std::to_string(file.get());
  std::map<std::string, std::string> failures;  // by program
  for (bool at_return : {false, true}) {
    std::map<std::string, std::vector<uint64_t>> offsets;  // by program
    for (const Function& function : wanted) {
      auto symbol = symbols->find(function.name);
      const char* program = at_return ? function.leave : function.enter;
      if (symbol != symbols->end() && program) offsets[program].push_back(symbol->second);
    }
    for (const auto& [program, at] : offsets)
      if (int error = AttachProgram(program.c_str(), at_return, held, at, &library)) failures[program] = "attach " + program + ": " + strerror(error);
  }
  for (const Function& function : wanted) {
    HookState state = {prefix + ":" + function.name, "api", "attached", path};
    auto fail = [&](const std::string& reason) { state.state = "missing"; state.detail = path + ": " + reason; };
    if (!symbols->count(function.name)) {
      if (!function.required) continue;
      fail(std::string("no function ") + function.name);
    } else if (failures.count(function.enter)) {
      fail(failures[function.enter]);
    } else if (function.leave && failures.count(function.leave)) {
      fail(failures[function.leave]);
    }
    library.states.push_back(std::move(state));
  }

  std::vector<HookState> states = library.states;
  // A file without a single probe may be another one by the next call.
  if (!library.links.empty() || !library.multi.empty()) libraries_.emplace(inode, std::move(library));
  return states;
}

void TlsProbes::Detach() {
  // Each waits for grace periods of the kernel, which links of the newer kind can do at the same time.
  std::vector<std::thread> waiting;
  for (auto& [inode, library] : libraries_) {
    for (int link : library.multi) waiting.emplace_back(close, link);
    for (bpf_link* link : library.links) bpf_link__destroy(link);
  }
  for (std::thread& thread : waiting) thread.join();
  libraries_.clear();
}
