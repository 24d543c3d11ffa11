// Whether what a plan was made from still is as it was: module attributes, options of optimisers,
// and where and how tensors lie. Asked before every call of the fused engine, behind a step that
// has left nothing of the interpreter in the caches, so it is one loop here instead of many in
// Python. Tensors are seen through DLPack's exchange table, an interface that does not change.
#ifndef Py_LIMITED_API
#  define Py_LIMITED_API 0x030a0000
#endif
#include <Python.h>

// DLPack's table carries a version of its own, which exchange() compares, so it is as stable as
// torch's stable headers, among which torch does not count it.
#undef TORCH_TARGET_VERSION
#include <ATen/dlpack.h>

#include <cstring>
#include <vector>

namespace {

const DLPackExchangeAPI* exchange() {
  static const DLPackExchangeAPI* table = nullptr;
  if (table) return table;
  PyObject* const torch = PyImport_ImportModule("torch");
  PyObject* const tensor = torch ? PyObject_GetAttrString(torch, "Tensor") : nullptr;
  PyObject* const capsule =
      tensor ? PyObject_GetAttrString(tensor, "__dlpack_c_exchange_api__") : nullptr;
  Py_XDECREF(tensor);
  Py_XDECREF(torch);
  if (!capsule) return nullptr;
  const auto* found = static_cast<const DLPackExchangeAPIHeader*>(
      PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
  Py_DECREF(capsule);
  if (!found) return nullptr;
  const auto newest = found->version.major;
  while (found && found->version.major != DLPACK_MAJOR_VERSION) found = found->prev_api;
  if (!found) {
    PyErr_Format(PyExc_RuntimeError,
                 "fastgan was built for version %d of DLPack and torch has version %d; install "
                 "fastgan anew",
                 DLPACK_MAJOR_VERSION, static_cast<int>(newest));
    return nullptr;
  }
  return table = reinterpret_cast<const DLPackExchangeAPI*>(found);
}

// Where a tensor lies and how, as numbers one after another.
class Look {
 public:
  static constexpr int kRank = 5, kFixed = 6;  // where the rank is, and what does not depend on it

  // False with an exception set.
  bool at(PyObject* tensor) {
    DLTensor t;
    if (exchange()->dltensor_from_py_object_no_sync(tensor, &t) != 0) return false;
    numbers_.clear();
    // First, as prefetch() looks for it: where the tensor's own description is.
    add(reinterpret_cast<uintptr_t>(t.shape));
    add(reinterpret_cast<uintptr_t>(t.data));
    add(t.byte_offset);
    add(static_cast<uint64_t>(t.device.device_type) << 32 |
        static_cast<uint32_t>(t.device.device_id));
    add(static_cast<uint64_t>(t.dtype.code) << 32 | static_cast<uint64_t>(t.dtype.bits) << 16 |
        t.dtype.lanes);
    add(static_cast<uint64_t>(t.ndim));
    for (int i = 0; i < t.ndim; ++i) {
      add(static_cast<uint64_t>(t.shape[i]));
      add(static_cast<uint64_t>(t.strides[i]));
    }
    return true;
  }

  const char* bytes() const { return reinterpret_cast<const char*>(numbers_.data()); }
  size_t size() const { return numbers_.size() * sizeof(uint64_t); }

 private:
  void add(uint64_t number) { numbers_.push_back(number); }

  std::vector<uint64_t> numbers_;
};

// Asks for the lines that the comparison will read, all at once: each would be waited for alone
// otherwise.
void prefetch(PyObject* entries, PyObject* tensors, const char* looks, Py_ssize_t bytes) {
  const Py_ssize_t size_of_number = sizeof(uint64_t);
  for (Py_ssize_t i = 0, count = PyTuple_Size(tensors); i < count; ++i) {
    uint64_t record[Look::kFixed];
    if (bytes < static_cast<Py_ssize_t>(sizeof record)) break;
    std::memcpy(record, looks, sizeof record);
    __builtin_prefetch(PyTuple_GetItem(tensors, i));
    // Where a tensor's shape is, the rest of what torch knows of it is near.
    for (const int line : {-64, 0, 64})
      __builtin_prefetch(reinterpret_cast<const void*>(static_cast<uintptr_t>(record[0]) +
                                                       static_cast<uintptr_t>(line)));
    const uint64_t longest = static_cast<uint64_t>(bytes / size_of_number - Look::kFixed) / 2;
    if (record[Look::kRank] > longest) break;
    const Py_ssize_t length =
        size_of_number * (Look::kFixed + 2 * static_cast<Py_ssize_t>(record[Look::kRank]));
    looks += length;
    bytes -= length;
  }
  for (Py_ssize_t i = 0, size = PyTuple_Size(entries); i < size; i += 3)
    __builtin_prefetch(PyTuple_GetItem(entries, i));
}

PyObject* look(PyObject*, PyObject* tensors) {
  if (!PyTuple_Check(tensors)) {
    PyErr_SetString(PyExc_TypeError, "tensors must be a tuple of tensors");
    return nullptr;
  }
  const Py_ssize_t size = PyTuple_Size(tensors);
  if (!exchange()) return nullptr;
  Look one;
  std::vector<char> all;
  for (Py_ssize_t i = 0; i < size; ++i) {
    if (!one.at(PyTuple_GetItem(tensors, i))) return nullptr;
    all.insert(all.end(), one.bytes(), one.bytes() + one.size());
  }
  return PyBytes_FromStringAndSize(all.data(), static_cast<Py_ssize_t>(all.size()));
}

// 1, 0, or -1 with an exception set.
int still_has(PyObject* holder, PyObject* name, PyObject* value) {
  if (!PyDict_Check(holder)) {
    PyObject* const now = PyObject_GetAttr(holder, name);
    Py_XDECREF(now);
    return now ? now == value : -1;
  }
  if (name != Py_None) {
    PyObject* const now = PyDict_GetItemWithError(holder, name);
    return now == nullptr && PyErr_Occurred() ? -1 : now == value;
  }
  if (!PyTuple_Check(value)) {
    PyErr_SetString(PyExc_TypeError, "entries must have a tuple of objects where a name is None");
    return -1;
  }
  const Py_ssize_t size = PyTuple_Size(value);
  if (PyDict_Size(holder) != size) return 0;
  Py_ssize_t at = 0;
  PyObject* now = nullptr;
  for (Py_ssize_t i = 0; PyDict_Next(holder, &at, nullptr, &now); ++i)
    if (now != PyTuple_GetItem(value, i)) return 0;
  return 1;
}

PyObject* unchanged(PyObject*, PyObject* arguments) {
  PyObject *entries, *tensors, *looks;
  if (!PyArg_ParseTuple(arguments, "O!O!S:unchanged", &PyTuple_Type, &entries, &PyTuple_Type,
                        &tensors, &looks))
    return nullptr;
  const Py_ssize_t size = PyTuple_Size(entries), count = PyTuple_Size(tensors);
  char* seen;
  Py_ssize_t left;
  if (PyBytes_AsStringAndSize(looks, &seen, &left) < 0 || !exchange()) return nullptr;
  if (size % 3 != 0) {
    PyErr_SetString(PyExc_ValueError, "entries must be holder, name, object, time and again");
    return nullptr;
  }
  prefetch(entries, tensors, seen, left);
  for (Py_ssize_t i = 0; i < size; i += 3) {
    const int same = still_has(PyTuple_GetItem(entries, i), PyTuple_GetItem(entries, i + 1),
                               PyTuple_GetItem(entries, i + 2));
    if (same < 0) return nullptr;
    if (same == 0) Py_RETURN_FALSE;
  }
  Look one;
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (!one.at(PyTuple_GetItem(tensors, i))) return nullptr;
    const auto length = static_cast<Py_ssize_t>(one.size());
    if (length > left || std::memcmp(one.bytes(), seen, one.size()) != 0) Py_RETURN_FALSE;
    seen += length;
    left -= length;
  }
  return PyBool_FromLong(left == 0);
}

}  // namespace

PyMethodDef fastgan_watch_functions[] = {
    {"look", look, METH_O,
     "look(tensors) -> bytes\n\nWhere each tensor of a tuple lies and how: address, device, dtype, "
     "shape, strides."},
    {"unchanged", unchanged, METH_VARARGS,
     "unchanged(entries, tensors, looks) -> bool\n\nWhether all is as it was. entries: a tuple of "
     "holder, name, object, holder, name, object, and so on; a holder is a dictionary that had the "
     "object under the name, or any other object that had it as an attribute; with None for a name "
     "the object is the tuple of all the dictionary's values. looks: what look(tensors) was."},
    {nullptr, nullptr, 0, nullptr}};
